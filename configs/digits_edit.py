"""Instruction-based editing on a laptop, from nothing: a mixture of transformers edits scenes of handwritten digits.

    python -m rae_jax.main --config=configs/digits_edit.py

One to four digits of six colours stand in a grid of four cells (`rae_jax/data/scenes.py`). The latent space is that of
`configs/digits_text.py`: a pretrained encoder, a decoder that inverts it, and the latents' statistics. The mixture then
learns to recolour, replace, remove, add, move and swap digits as it is told, and chains of two. It takes 26 minutes on
two cores, and then follows 84 % of the instructions and keeps everything else in 90 % of the edits.
"""

from ml_collections import ConfigDict

from configs import architectures, digits, digits_rpiae, digits_text, variants
from configs.rpiae_edit import learn_guidance


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `configs/digits_edit.py:tiny` takes seconds, for tests: nothing is learnt.

    `rpiae` has RPiAE's latents, of 16 channels, and `kl` those of a KL-VAE; either is trained first, and what is said
    above is of neither. `caption` paints the prompts of `configs/digits_text.py` instead, from texts alone. `few_steps`
    goes on to a flow map that edits in one step and in two. Words are joined by hyphens, as in `tiny-caption`.
    """
    words = variants.words_of(
        variant, ("tiny",), ("rpiae", "kl"), ("caption",), ("few_steps",), file="configs/digits_edit.py"
    )
    config = digits_text.get_config("-".join(word for word in words if word in ("tiny", "kl")))
    config.stages = ("encoder", "decoder", "stats", "mixture")
    if "kl" in words:
        config.stages = ("teacher", "stats", "mixture")
    if "rpiae" in words:
        config.stages = ("encoder", "feature_stats", "pivot", "bridge", "specialisation", "stats", "mixture")
        digits_rpiae.use_rpiae(config, tiny="tiny" in words)
    config.language_model.model = ConfigDict()
    config.flow.num_classes = 0
    config.sampling.labels = "unconditional"

    config.mixture.task = "edit"
    config.mixture.tokenizer = "scenes"
    config.mixture.model = architectures.mixture_of_transformers(
        vocabulary=448, width=128, depth=4, num_heads=4, num_kv_heads=4, head_dim=32, hidden=384, latent_capacity=4,
        wide_head=True, head_width=128, head_depth=1, head_num_heads=4,  # or noise and source share the 128 channels
    )  # fmt: skip
    # An instruction has 17 tokens on average and 39 at the most; three fit beside each other, mostly.
    config.mixture.pack_images = config.mixture.pack_sources = 3
    config.mixture.pack_texts = 76
    config.mixture.source_dropout = 0.1
    config.mixture.text_first = True  # the source's tokens see the instruction, and can tell whether they are meant
    # Small batches: in equal time twice the steps, each with half the packs, change more cells as told.
    digits.stage(config.mixture.train, steps=5800, batch_size=8, learning_rate=2.5e-3, ema_decay=0.998)
    config.mixture.train.optimizer.name = "muon"

    config.sampling.num_samples = 500
    config.sampling.batch_size = 100
    config.sampling.guidance_scale, config.sampling.image_guidance_scale = 3.0, 1.5
    if "caption" in words:
        config.mixture.task, config.mixture.pack_sources = "caption", 0
        config.sampling.guidance_scale = 2.0
        config.sampling.num_samples = 600
    if "few_steps" in words:
        digits_text.few_steps(config, "mixture")
        learn_guidance(config)
        config.mid_training.label_dropout = config.flow_map.label_dropout = 0.0  # nothing is guided afterwards
    if "tiny" in words:
        digits.shorten(config.mixture.train)
        config.mixture.train.optimizer.name = "adamw"  # whose steps at this rate are longer
        config.mixture.model.width, config.mixture.model.depth, config.mixture.model.hidden = 16, 1, 32
        config.mixture.model.num_heads, config.mixture.model.num_kv_heads, config.mixture.model.head_dim = 2, 1, 8
        config.mixture.model.head_width, config.mixture.model.head_num_heads = 16, 2
        config.sampling.num_samples = 8
        config.mid_training.pairs = 2
        for name in ("mid_training", "flow_map"):
            digits.shorten(config[name].train)
    return config
