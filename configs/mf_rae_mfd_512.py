"""MF-RAE at 512 pixels, second of two stages: MeanFlow distillation after consistency mid-training.

    python -m rae_jax.main --config=configs/mf_rae_mfd_512.py --config.data.path=TFDS_DIR \\
        --config.mid_training.weights=DIR --config.flow.weights=DIR --config.encoder.weights=DIR \\
        --config.stats.weights=DIR --config.decoder.weights=DIR

Reported by the paper: FID 3.23 in one step. Batch, learning rate and average are the released ones; the number of steps
is ours. Nothing of it has been run yet.
"""

from ml_collections import ConfigDict

from configs.mf_rae_mfd_256 import meanflow


def get_config(variant: str = "") -> ConfigDict:
    return meanflow(512, variant, file="configs/mf_rae_mfd_512.py")
