"""RAE's stage 1 on WebSSL-300M, as the published webssl300m_decoder, on images of the web.

    python -m rae_jax.main --config=configs/rae_webssl_300m.py --config.data.path=DIR \\
        --config.encoder.weights=DIR --config.discriminator.weights=DINO_VIT_S8_FILE

`DIR` is what `python -m tools.prepare_captions` writes. The variants are those of `configs/rae_dinov2b_vitxl.py`;
`up378` makes images of 378 pixels from the same tokens. Not run at full size with this code.
"""

from ml_collections import ConfigDict

from configs.rae_dinov2b_vitxl import stage1


def get_config(variant: str = "") -> ConfigDict:
    config = stage1("webssl_300m", variant, file="configs/rae_webssl_300m.py")
    config.data.source = "conversations"
    return config
