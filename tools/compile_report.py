"""What the TPU compiler says of an experiment's training step, without a TPU.

    python -m tools.compile_report --config=configs/dith_xl.py --topology=v5p:4x4x4
    python -m tools.compile_report --config=configs/dith_xl.py --latents --json=report.json

Lowers the config's own step on abstract arrays, laid over the topology as `config.mesh` says, compiles it with the
compiler inside libtpu, and reports memory, time, and collectives. Nothing is executed and no weights are made: every
time is the compiler's estimate, and none was measured on a chip.
"""

import json
import sys
from pathlib import Path

import jax
from absl import app, flags

from rae_jax.costs.compile_report import report, show
from rae_jax.experiment import flags as experiment
from rae_jax.experiment.configuration import resolved, stage_of
from rae_jax.files import whole_file


def main(arguments: list[str]) -> None:
    del arguments
    config = experiment.config()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # the compile time is part of the report
    try:
        config = resolved(config, experiment.workdir())
        stage = stage_of(config, STAGE.value)
        result = report(config, TOPOLOGY.value, stage=stage, program=PROGRAM.value, latents=LATENTS.value)
    except ValueError as error:
        sys.exit(f"error: {error}")
    show(result)
    if JSON.value:
        with whole_file(Path(JSON.value)) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    TOPOLOGY = flags.DEFINE_string("topology", "v5p:4x4x4", "The TPU slice.")
    STAGE = flags.DEFINE_string("stage", "", "Whose training step; the last of the config's stages by default.")
    PROGRAM = flags.DEFINE_enum("program", "train_step", ["train_step", "sampler"], "What to compile.")
    LATENTS = flags.DEFINE_bool("latents", False, "Batches of latents computed before: a step without the encoder.")
    JSON = flags.DEFINE_string("json", "", "Also writes the report to this file.")
    app.run(main, flags_parser=experiment.parse)
