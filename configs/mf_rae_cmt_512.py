"""MF-RAE at 512 pixels, first of two stages: consistency mid-training of a flow map from a trained DiT^DH-XL.

    python -m rae_jax.main --config=configs/mf_rae_cmt_512.py --config.data.path=TFDS_DIR \\
        --config.flow.weights=DIR --config.stats.weights=DIR --config.decoder.weights=DIR

As at 256 pixels, on 32 x 32 tokens, with statistics and a teacher of that size. Nothing of it has been run yet.
`configs/mf_rae_mfd_512.py` continues from `<workdir>/mid_training/weights`.
"""

from ml_collections import ConfigDict

from configs import mf_rae_cmt_256


def get_config(backbone: str = "XL") -> ConfigDict:
    return mf_rae_cmt_256.get_config(f"{backbone}-512")
