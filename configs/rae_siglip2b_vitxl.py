"""RAE's stage 1 on SigLIP2-B: `configs/rae_dinov2b_vitxl.py` with the other encoder, and the same variants.

    python -m rae_jax.main --config=configs/rae_siglip2b_vitxl.py --config.data.path=TFDS_DIR \\
        --config.encoder.weights=DIR --config.discriminator.weights=DINO_VIT_S8_FILE
"""

from ml_collections import ConfigDict

from configs.rae_dinov2b_vitxl import stage1


def get_config(variant: str = "") -> ConfigDict:
    return stage1("siglip2_b", variant, file="configs/rae_siglip2b_vitxl.py")
