"""Text to image in one step: MF-RAE's consistency mid-training and MeanFlow distillation of a DiT that is told prompts.

    python -m rae_jax.main --config=configs/t2i_one_step.py:cmt-mfd --config.data.path=DIR \\
        --config.encoder.weights=SIGLIP2 --config.decoder.weights=siglip2_decoder/model.pt \\
        --config.language_model.weights=FILE --config.adapters.weights=FILE --config.text_dit.weights=FILE \\
        --config.language_model.tokenizer=QWEN

Nobody has published it. The teacher is the DiT of `configs/t2i_qwen1_5b_dit2_4b.py`, with its language model and
adapters, all three frozen; a released checkpoint holds them in one file. The flow map is the same network with the
length of the interval and a guidance scale with its interval as inputs (iMF), so that one pass of it is a sample of any
`sampling.guidance_scale` from 1, as in the published script and here, to 8. Batches are of conversations, of which only
images that answer count. Numbers are MF-RAE's at 256 pixels (`configs/mf_rae_cmt_256.py`, `configs/mf_rae_mfd_256.py`).
Words after the colon, joined by hyphens, are the stages: `cmt`, `mfd`; both without a word. `mfd` alone needs
`--config.mid_training.weights`. Nothing of it has been run at full size; `configs/digits_text.py:few_steps` is the same
on a laptop.
"""

from ml_collections import ConfigDict

from configs import t2i_qwen1_5b_dit2_4b, variants
from configs.mf_rae_mfd_256 import STAGES, on_another_generator

FILE = "configs/t2i_one_step.py"


def get_config(variant: str = "") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: a word of `variant` is unknown.
    """
    words = variants.words_of(variant, ["cmt"], ["mfd"], file=FILE)
    config = t2i_qwen1_5b_dit2_4b.get_config()
    on_another_generator(config, words, transform="resize", file=FILE)
    for name in ("text_dit", *STAGES.values()):
        config[name].dtype = "bfloat16_3x"  # a difference quotient divides its rounding by a small number
    config.mid_training.initial = "text_dit"
    config.flow_map.guided = True
    return config
