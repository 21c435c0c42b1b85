"""Mean and variance of the latents of an experiment's data, exact, in the project's and in the official format.

    python -m tools.latent_statistics --config=configs/rae_dinov2b_vitxl.py --config.data.path=TFDS_DIR \\
        --config.encoder.weights=DIR --workdir=runs/stats --official=stat.pt

Runs the stage "stats" of the config alone: every training image once, centre-cropped, over all devices and processes,
with a progress bar. Stopped in the middle, the same command continues. The project's format is a weights directory,
`<workdir>/stats/weights`, for `--config.stats.weights`; the official one is the file `--official`.
"""

import sys

import jax
from absl import app, flags

from rae_jax.experiment import flags as experiment
from rae_jax.experiment.run import open_run
from rae_jax.files import local_path
from tools.convert import export_checkpoint

OFFICIAL = flags.DEFINE_string("official", "", "Where the official file goes: .pt or .safetensors.")


def main(arguments: list[str]) -> None:
    del arguments
    config, workdir = experiment.config(), experiment.workdir()
    config.stages = ("stats",)
    config.stats.weights = ""
    experiment.connect(config)
    try:
        official = local_path(OFFICIAL.value, "--official")
        with open_run(config, experiment.config_file(), workdir) as stages:
            stages.train()
            weights = stages.weights.place("stats")
        if jax.process_index() == 0:
            print(f"statistics: {weights}")
            if OFFICIAL.value:
                export_checkpoint("latent_stats", weights, official)
                print(f"the same in the official format: {official}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=experiment.parse)
