"""What an experiment's models cost: parameters and multiply-adds for one image, counted from the models themselves.

    python -m tools.cost --config=configs/dith_xl.py
    python -m tools.cost --config=configs/mf_rae_mfd_256.py --json=cost.json

Counted are the products in matrix products and convolutions, and nothing else. The papers' GFLOPs turn out to be
multiply-adds without attention's own two products, scores and weighted values; both numbers are given. Nothing is
computed and no weights are made.
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import app, flags
from rich.console import Console
from rich.table import Table

from rae_jax.costs.model_flops import costs
from rae_jax.experiment import flags as experiment
from rae_jax.experiment.configuration import resolved
from rae_jax.files import whole_file


def main(arguments: list[str]) -> None:
    del arguments
    try:
        config = resolved(experiment.config(), experiment.workdir())
        result = costs(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    table = Table(title=f"one image of {config.data.image_size} pixels", title_justify="left")
    for name in ("part", "million parameters", "billion multiply-adds", "as the papers count"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name, cost in result.items():
        table.add_row(name, f"{cost.parameters / 1e6:,.2f}", f"{cost.multiply_adds / 1e9:,.2f}",
                      f"{cost.without_attention / 1e9:,.2f}")  # fmt: skip
    Console(soft_wrap=True).print(table)
    if JSON.value:
        with whole_file(Path(JSON.value)) as file:
            plain = {name: dataclasses.asdict(cost) for name, cost in result.items()}
            file.write((json.dumps(plain, indent=2) + "\n").encode())


if __name__ == "__main__":
    JSON = flags.DEFINE_string("json", "", "Also writes the numbers to this file.")
    app.run(main, flags_parser=experiment.parse)
