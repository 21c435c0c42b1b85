"""The laptop experiment: the whole method on scikit-learn's handwritten digits, from nothing, on a CPU.

    python -m rae_jax.main --config=configs/digits.py

A small encoder is pretrained by masked autoencoding and frozen; a decoder learns to invert it from noisy latents; the
latents' statistics are measured; a DiT^DH learns the flow in the normalised latent space; consistency mid-training and
MeanFlow distillation turn it into a flow map. 1,000 digits are sampled with 50 Euler steps, in one step and in two, and
judged. README.md has the numbers it reaches and how long it takes.
"""

from ml_collections import ConfigDict

from configs import architectures, base, variants

SIZES = ("width", "depth", "num_heads", "head_width", "head_depth", "head_num_heads")


def get_config(variant: str = "") -> ConfigDict:
    """The experiment, or in a minute or two a part of it to look at.

    `configs/digits.py:quick` trains smaller networks up to the flow: with three seeds 92, 85 and 93 of 100 digits were
    those asked for. `configs/digits.py:tiny` is the whole pipeline in seconds, for tests: nothing is learnt.
    `in_context`, alone or after one of these, has RAEv2's generator instead of DiT^DH, and `dit` a DiT without
    the wide head.
    """
    words = variants.words_of(variant, ("quick", "tiny"), ("in_context", "dit"), file="configs/digits.py")
    config = base.get_config()
    config.stages = ("encoder", "decoder", "stats", "flow", "mid_training", "flow_map")

    config.data.source = "digits"
    config.data.test_split = "test"
    config.data.image_size = 32
    config.data.num_workers = 0
    config.cpu_devices = 1  # two, each with half of these small batches, take longer

    # 4 tokens of 64 channels; the images are 8 x 8 pixels enlarged, so a patch of 16 covers 4 x 4 of them.
    config.encoder.input_size = 32
    config.encoder.image_mean = (0.3, 0.3, 0.3)
    config.encoder.image_std = (0.35, 0.35, 0.35)
    config.encoder.model = architectures.vision_transformer(
        image_size=32, patch_size=16, width=64, depth=4, num_heads=4
    )
    config.encoder.head = ConfigDict(dict(width=64, depth=2, num_heads=4, mlp_dim=256))
    config.encoder.mask_ratio = 0.5
    stage(config.encoder.train, steps=800, batch_size=64, learning_rate=2e-3, ema_decay=0.995)

    config.decoder.model = architectures.vit_decoder(patch_size=16, width=64, depth=3, num_heads=4, mlp_dim=256)
    config.decoder.noise_tau = 0.5
    stage(config.decoder.train, steps=700, batch_size=64, learning_rate=2e-3, ema_decay=0.995)

    config.stats.train.transform = "none"
    config.stats.train.batch_size = 128

    # Small batches: at this size the number of updates counts for more than the noise in each.
    config.flow.num_classes = 10
    config.flow.model = architectures.dit_dh(
        width=96, depth=3, num_heads=4, head_width=96, head_depth=1, head_num_heads=4
    )
    config.flow.shift_base = 256  # no shift
    stage(config.flow.train, steps=4700, batch_size=32, learning_rate=3e-3, ema_decay=0.998)
    config.flow.train.checkpoint_every = 1000  # one takes as long as 50 of these steps

    # The weak network of AutoGuidance, for who adds "guide" to the stages: narrower, and trained for less.
    config.guide.model = architectures.dit_dh(
        width=48, depth=2, num_heads=4, head_width=96, head_depth=1, head_num_heads=4
    )
    stage(config.guide.train, steps=1500, batch_size=32, learning_rate=2e-3, ema_decay=0.998)

    # A batch is one of trajectories, each with 15 evaluations of the teacher and 16 pairs to learn from.
    config.mid_training.pairs = 16
    config.mid_training.label_dropout = 0.0  # nothing here is sampled with guidance
    stage(config.mid_training.train, steps=200, batch_size=16, learning_rate=3e-3, ema_decay=0.99)

    config.flow_map.label_dropout = 0.0
    config.flow_map.unequal_share = 0.75  # with few steps, more of those that learn a jump
    # At twice the rate losses jump, and some runs do not come back from it.
    stage(config.flow_map.train, steps=1000, batch_size=64, learning_rate=2e-3, ema_decay=0.995)
    config.flow_map.train.max_gradient_norm = 1e4

    config.sampling.num_samples = 1000
    config.sampling.batch_size = 200

    config.evaluation.judge = True
    config.evaluation.linear_probe = True
    config.evaluation.reconstruction = True
    config.evaluation.frechet = True
    config.lpips.weights = config.lpips_alexnet.weights = ""  # of 8 x 8 pixels it says little, and takes a minute
    if "quick" in words:
        quicken(config)
    if "tiny" in words:
        shrink(config)
    if "in_context" in words:
        take_in_context(config)
    if "dit" in words:
        take_dit(config)
    return config


def stage(train: ConfigDict, *, steps: int, batch_size: int, learning_rate: float, ema_decay: float) -> None:
    """Fills in how a stage of this experiment trains: a short warm-up, then a cosine to a tenth of the rate."""
    train.transform = "none"
    train.steps = steps
    train.batch_size = batch_size
    train.ema_decay = ema_decay
    train.log_every = 50
    train.checkpoint_every = 500
    train.optimizer.learning_rate = learning_rate
    train.optimizer.final_learning_rate = learning_rate / 10
    train.optimizer.shape = "cosine"
    train.optimizer.warmup_from_zero = True
    train.optimizer.warmup_steps = steps // 20
    train.optimizer.decay_end_step = steps


def quicken(config: ConfigDict) -> None:
    """Smaller networks, no flow map, and few numbers: digits to look at, soon."""
    config.stages = ("encoder", "decoder", "stats", "flow")
    config.encoder.model.depth, config.encoder.head.depth, config.decoder.model.depth = 2, 1, 2
    stage(config.encoder.train, steps=200, batch_size=64, learning_rate=2e-3, ema_decay=0.98)
    stage(config.decoder.train, steps=300, batch_size=64, learning_rate=2e-3, ema_decay=0.98)
    config.flow.model.depth = 2
    stage(config.flow.train, steps=1600, batch_size=32, learning_rate=4e-3, ema_decay=0.99)
    config.sampling.num_samples = 100
    config.sampling.batch_size = 100
    config.evaluation.linear_probe = config.evaluation.reconstruction = config.evaluation.frechet = False


def take_in_context(config: ConfigDict) -> None:
    """Puts RAEv2's generator in the place of DiT^DH, of the same sizes; four tokens need no more than two beside."""
    same = {name: config.flow.model[name] for name in SIZES}
    early = max(1, config.flow.model.depth - 1)
    config.flow.family = "dit_in_context"
    config.flow.model = architectures.dit_in_context(**same, base_depth=early, time_tokens=1, condition_tokens=1)


def take_dit(config: ConfigDict) -> None:
    """Puts a DiT in the place of DiT^DH, as wide as the backbone, as deep as backbone and head together."""
    model = config.flow.model
    depth = model.depth + model.head_depth
    config.flow.family = "lightning_dit"
    config.flow.model = architectures.lightning_dit(width=model.width, depth=depth, num_heads=model.num_heads)


def shrink(config: ConfigDict) -> None:
    """Makes every part small and every stage short."""
    shrink_autoencoder(config)
    config.flow.model.width, config.flow.model.depth, config.flow.model.num_heads = 16, 1, 2
    config.flow.model.head_width, config.flow.model.head_depth, config.flow.model.head_num_heads = 16, 1, 2
    config.guide.model = config.flow.model.copy_and_resolve_references()
    config.guide.model.depth, config.guide.model.head_width = 1, 8
    for name in (*config.stages, "guide"):
        shorten(config[name].train)
    config.stats.train.batch_size = 256
    config.mid_training.trajectory_steps = 3
    config.mid_training.pairs = 2
    config.sampling.num_samples = 20
    config.sampling.num_steps = 4


def shrink_autoencoder(config: ConfigDict) -> None:
    """A small encoder and a small decoder, of 16 tokens: enough to see one in another's place."""
    config.encoder.model.patch_size = config.decoder.model.patch_size = 8
    config.encoder.model.width = config.encoder.head.width = config.decoder.model.width = 16
    config.encoder.model.depth = config.encoder.head.depth = config.decoder.model.depth = 1
    config.encoder.model.num_heads = config.encoder.head.num_heads = config.decoder.model.num_heads = 2
    config.encoder.model.mlp_dim = config.encoder.head.mlp_dim = config.decoder.model.mlp_dim = 32


def shorten(train: ConfigDict) -> None:
    """A stage of seconds."""
    stage(train, steps=20, batch_size=16, learning_rate=1e-3, ema_decay=0.9)
    train.log_every = 1
    train.checkpoint_every = 5
