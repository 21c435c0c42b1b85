"""RAEv2 in one step: MF-RAE's consistency mid-training and MeanFlow distillation on RAEv2's generator.

    python -m rae_jax.main --config=configs/raev2_one_step.py:cmt-mfd --config.data.path=TFDS_DIR \\
        --config.flow.weights=FILE --config.encoder.weights=FILE --config.stats.weights=FILE \\
        --config.decoder.weights=FILE

Nobody has published it. The teacher is the generator of `configs/raev2_dinov3l.py:k7`, the released `checkpoint.pt` or
one's own. The flow map is the same network with four more tokens, of the length of the interval, and predicts the data
too: its mean velocity is `(z_t - prediction) / max(t, 0.05)`. Its early output stays as the teacher's and is not used.
Numbers are MF-RAE's at 256 pixels (`configs/mf_rae_cmt_256.py`, `configs/mf_rae_mfd_256.py`). Words after the colon,
joined by hyphens, are the stages: `cmt`, `mfd`; both without a word. Nothing of it has been run at full size.
"""

from ml_collections import ConfigDict

from configs import base, raev2_dinov3l, variants
from configs.mf_rae_mfd_256 import on_another_generator

FILE = "configs/raev2_one_step.py"


def get_config(variant: str = "") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: a word of `variant` is unknown.
    """
    words = variants.words_of(variant, ["cmt"], ["mfd"], file=FILE)
    config = base.get_config()
    config.dtype = "bfloat16_3x"  # a difference quotient divides its rounding by a small number
    raev2_dinov3l.latents(config, raev2_dinov3l.LAYERS["k7"])
    raev2_dinov3l.generator(config)
    on_another_generator(config, words, transform="center_crop", file=FILE)
    config.sampling.internal_guidance_scale = 1.0
    return config
