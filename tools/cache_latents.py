"""A cache of latents: every training image and its mirror image, encoded once, for generators to train on.

    python -m tools.cache_latents --config=configs/dith_xl.py --config.data.path=TFDS_DIR \\
        --config.encoder.weights=DIR --output=LATENTS
    python -m rae_jax.main --config=configs/dith_xl.py ... --config.data.latents=LATENTS

What encodes comes from the config's weights, or from a finished run in --workdir=DIR. The images are transformed as the
section "flow" says, without its flip. The latents are bfloat16, not normalised. Several processes, each started with
--distributed, write a share of the shards each. Stopped in the middle, the same command goes on with the first shard
that is missing; until the end the directory has no latents.json, and no run takes it.
"""

import sys

import jax
import numpy as np
from absl import app, flags, logging

from rae_jax.experiment import flags as experiment
from rae_jax.experiment.configuration import resolved
from rae_jax.experiment.latent_writer import write_cache
from rae_jax.files import local_path

OUTPUT = flags.DEFINE_string("output", "", "The directory of the cache.")


def main(arguments: list[str]) -> None:
    del arguments
    config, workdir = experiment.config(), experiment.workdir()
    if not OUTPUT.value:
        raise app.UsageError("--output=DIR is missing: where the cache goes")
    logging.set_verbosity(logging.WARNING)
    experiment.connect(config)
    try:
        output = local_path(OUTPUT.value, "--output")
        found = write_cache(resolved(config, workdir), experiment.config_file(), workdir, output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if jax.process_index() == 0:
        size = sum((output / found.shard(number)).stat().st_size for number in range(found.shards))
        print(
            f"complete: {output}: {found.images:,} images and their mirror images, {np.prod(found.shape):,} numbers "
            f"each; {size:,} bytes, {size / (2 * found.images):,.1f} a record"
        )


if __name__ == "__main__":
    app.run(main, flags_parser=experiment.parse)
