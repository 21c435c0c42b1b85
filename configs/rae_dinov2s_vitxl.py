"""RAE's stage 1 on DINOv2-S: `configs/rae_dinov2b_vitxl.py` with another encoder, and the same words after the colon.

    python -m rae_jax.main --config=configs/rae_dinov2s_vitxl.py --config.data.path=TFDS_DIR \\
        --config.encoder.weights=DIR --config.discriminator.weights=DINO_VIT_S8_FILE
"""

from ml_collections import ConfigDict

from configs.rae_dinov2b_vitxl import stage1


def get_config(variant: str = "") -> ConfigDict:
    return stage1("dinov2_s", variant, file="configs/rae_dinov2s_vitxl.py")
