"""Instruction-based editing on RPiAE's latents, going on from `configs/rpiae_t2i.py` (Section 4.3).

    python -m rae_jax.main --config=configs/rpiae_edit.py --config.data.path=DIR \\
        --config.mixture.weights=T2I/mixture/weights --config.mixture.tokenizer=QWEN_DIR ...
    python -m rae_jax.main --config=configs/rpiae_edit.py --mode=edit --image=FILE --instruction="make it snow" ...

The source image goes in as clean latents alone: RPiAE's encoder keeps DINOv2's semantics. Words after the colon, joined
by hyphens:

    head      as in `configs/rpiae_t2i.py`
    rae, vae  likewise
    semantic  the source also as the encoder's tokens before the bridge, in place of Bagel's second encoder

The tokenizer's weights are given as to `configs/rpiae_t2i.py`. A step has 368 pairs of about 540 tokens each, 198,700
tokens: the paper's 192,000 to 200,000. Reported on GEdit-Bench-EN: 5.23 / 8.34 / 5.25, with the head 5.05 / 7.86 /
5.09. Nothing of it has been run at full size with this code yet.
"""

from ml_collections import ConfigDict

from configs import rpiae_t2i, variants

WORDS = (("head",), rpiae_t2i.TOKENIZERS, ("semantic",))


def get_config(variant: str = "") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: a word of `variant` is unknown, or two exclude each other.
    """
    words = variants.words_of(variant, *WORDS, file="configs/rpiae_edit.py")
    config = rpiae_t2i.get_config("-".join(word for word in words if word != "semantic"))
    config.data.source = "edits"
    config.mixture.initial = ""  # its weights are those of text to image
    config.mixture.task = "edit"
    config.mixture.semantic = "semantic" in words
    config.mixture.pack_images = config.mixture.pack_sources = 2
    config.mixture.pack_texts = 104 if "semantic" in words else 100
    config.mixture.train.steps = 50_000
    config.mixture.train.batch_size = 184
    return config


def learn_guidance(config: ConfigDict) -> None:
    """Has the teacher of the mixture's flow maps guided as samples of the mixture are."""
    for name in config.flow_map.teacher:
        config.flow_map.teacher[name] = config.sampling[name]
