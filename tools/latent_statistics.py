"""Mean and variance of the latents of an experiment's data, exact, in the project's and in the official format.

    python -m tools.latent_statistics --config=configs/rae_dinov2b_vitxl.py --config.data.path=TFDS_DIR \\
        --config.encoder.weights=DIR --workdir=runs/stats --official=stat.pt

Runs the stage "stats" of the config alone: every training image once, centre-cropped, over all devices and processes,
with a progress bar. Stopped in the middle, the same command continues. The project's format is a weights directory,
`<workdir>/stats/weights`, for `--config.stats.weights`; the official one is the file `--official`.
"""

import sys
from pathlib import Path

import jax
from absl import app, flags

from rae_jax import main as experiment
from tools.convert import export_checkpoint

OFFICIAL = flags.DEFINE_string("official", "", "Where the official file goes: .pt or .safetensors.")
GENERATORS = ("flow", "guidance", "mid_training", "flow_map")


def main(arguments: list[str]) -> None:
    if experiment.CONFIG.value is None or not experiment.WORKDIR.value:
        raise app.UsageError("--config=FILE and --workdir=DIR are needed")
    config = experiment.CONFIG.value
    config.stages = ("stats",)
    config.stats.weights = ""
    for name in GENERATORS:  # with their weights the run would end in samples
        config[name].weights = ""
    for name in config.evaluation:
        config.evaluation[name] = False
    experiment.main(arguments)
    weights = Path(experiment.WORKDIR.value) / "stats" / "weights"
    if jax.process_index() == 0:
        print(f"statistics: {weights}")
        if OFFICIAL.value:
            try:
                export_checkpoint("latent_stats", weights, OFFICIAL.value)
            except (ValueError, OSError) as error:
                sys.exit(f"error: {error}")
            print(f"the same in the official format: {OFFICIAL.value}")


if __name__ == "__main__":
    app.run(main, flags_parser=experiment.parse)
