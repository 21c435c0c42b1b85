"""MF-RAE at 512 pixels, first of two stages: consistency mid-training of a flow map from a trained DiT^DH-XL.

    python -m rae_jax.main --config=configs/mf_rae_cmt_512.py --config.data.path=TFDS_DIR \\
        --config.flow.weights=DIR --config.stats.weights=DIR --config.decoder.weights=DIR

As at 256 pixels, `:paper` too, on 32 x 32 tokens, with statistics and a teacher of that size, and 64 pairs a step as
released. Nothing of it has been run yet. `configs/mf_rae_mfd_512.py` continues from `<workdir>/mid_training/weights`.
"""

from ml_collections import ConfigDict

from configs.mf_rae_cmt_256 import mid_training


def get_config(variant: str = "") -> ConfigDict:
    return mid_training(512, variant, file="configs/mf_rae_cmt_512.py")
