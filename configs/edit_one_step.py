"""Editing in one step: MF-RAE's consistency mid-training and MeanFlow distillation of a mixture of transformers.

    python -m rae_jax.main --config=configs/edit_one_step.py:cmt-mfd --config.data.path=DIR \\
        --config.mixture.weights=DIR --config.mixture.tokenizer=QWEN_DIR --config.encoder.weights=DIR \\
        --config.bridge_encoder.weights=DIR --config.bridge_decoder.weights=DIR --config.decoder.weights=DIR

Nobody has published it. The teacher is the mixture of `configs/rpiae_edit.py`, guided as its samples are
(`config.flow_map.teacher`); the flow map learns the guided velocities, so that one pass of it is a guided edit. It is
the same network with the length of the interval as one more input, and reads text and source by itself, once for all
times. Each row of a batch is one edit. Numbers are MF-RAE's at 256 pixels (`configs/mf_rae_cmt_256.py`,
`configs/mf_rae_mfd_256.py`). Words after the colon, joined by hyphens: the stages `cmt`, `mfd`, both without a word;
and `head`, `rae`, `vae`, `semantic`, of the teacher, as in `configs/rpiae_edit.py`. `mfd` alone needs
`--config.mid_training.weights`. Nothing of it has been run at full size; `configs/digits_edit.py:few_steps` is the same
on a laptop.
"""

from ml_collections import ConfigDict

from configs import rpiae_edit, variants
from configs.mf_rae_mfd_256 import STAGES, on_another_generator
from configs.rpiae_edit import learn_guidance

FILE = "configs/edit_one_step.py"


def get_config(variant: str = "") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: a word of `variant` is unknown, or two exclude each other.
    """
    words = variants.words_of(variant, ["cmt"], ["mfd"], *rpiae_edit.WORDS, file=FILE)
    config = rpiae_edit.get_config("-".join(word for word in words if word not in STAGES))
    on_another_generator(config, words, transform="center_crop", file=FILE)
    config.mixture.model.scan = True  # of many passes a step
    for name in ("mixture", *STAGES.values()):
        config[name].dtype = "bfloat16_3x"  # a difference quotient divides its rounding by a small number
    config.mid_training.initial = "mixture"
    learn_guidance(config)
    for stage in STAGES.values():
        config[stage].label_dropout = 0.0  # nothing is guided afterwards
    return config
