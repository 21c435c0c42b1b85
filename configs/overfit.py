"""One image overfitted: a transformer narrower than the tokens cannot fit even that (RAE, Theorem 1 and Appendix G).

    python -m rae_jax.main --config=configs/overfit.py:768-12 --config.data.path=FOLDER_WITH_ONE_IMAGE \\
        --config.encoder.weights=DIR --config.decoder.weights=DIR

Two numbers after the colon: the width of a LightningDiT, a multiple of 64, and its depth. It trains 1,200 steps of 32
copies of the image's DINOv2-B latent, without an average, and samples with 25 steps. `flow.train.log_every` steps show
the loss that it comes down to. At this size it has not been run with this code yet.

`configs/overfit.py:laptop-64-32-4` is the same for a laptop: 16 tokens of 64 channels, by an encoder of random weights,
a network of width 32 and depth 4, and nothing sampled; with a fifth number, 128 say, it is a DiT^DH whose head of two
blocks has that width. `python -m tools.reproduce rae_width` runs these and says what they show.
"""

from ml_collections import ConfigDict

from configs import architectures, base, released

USAGE = "is neither a width, a multiple of 64, and a depth, as 768-12, nor laptop-TOKENS-WIDTH-DEPTH[-HEAD]"


def get_config(variant: str = "768-12") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: the variant is none of those above.
    """
    laptop = variant.startswith("laptop-")
    words = variant.removeprefix("laptop-").split("-")
    numbers = [int(word) for word in words if word.isdigit() and int(word)]
    of_right_length = len(numbers) in (3, 4) if laptop else len(numbers) == 2
    if len(numbers) != len(words) or not of_right_length or any(n % (16 if laptop else 64) for n in numbers[:-1][:1]):
        raise ValueError(f"configs/overfit.py:{variant} {USAGE}")
    config = base.get_config()
    config.stages = ("flow",)
    config.stats.weights = "identity"
    config.data.source = "folder"
    config.data.test_split = "train"  # there is but one image
    config.data.num_workers = 0
    config.flow.num_classes, config.sampling.labels = 0, "unconditional"
    config.flow.label_dropout = 1.0
    train = config.flow.train
    train.steps = 1200
    train.batch_size = 32
    train.ema_decay = 0.0
    train.log_every = 50
    train.optimizer.learning_rate = 2e-4
    train.optimizer.clip_norm = 0.0
    if laptop:
        use_small(config, *numbers)
        return config
    width, depth = numbers
    released.use_rae(config, "dinov2_b", 256)
    config.flow.family = "lightning_dit"
    config.flow.model = architectures.lightning_dit(width=width, depth=depth, num_heads=width // 64, scan=True)
    train.transform = "center_crop"
    config.sampling.num_samples = 8
    config.sampling.batch_size = 8
    config.sampling.num_steps = 25
    return config


def use_small(config: ConfigDict, tokens: int, width: int, depth: int, head_width: int = 0) -> None:
    """Tokens of `tokens` channels from a small encoder, and a small network."""
    config.data.image_size = config.encoder.input_size = 32
    config.encoder.model = architectures.vision_transformer(
        image_size=32, patch_size=8, width=tokens, depth=1, num_heads=4
    )
    config.decoder.model = architectures.vit_decoder(patch_size=8, width=64, depth=1, num_heads=4, mlp_dim=128)
    config.encoder.weights = config.decoder.weights = "random"
    heads = width // 16
    if head_width:
        config.flow.model = architectures.dit_dh(
            width=width, depth=depth, num_heads=heads, head_width=head_width, head_num_heads=head_width // 16
        )
    else:
        config.flow.family = "lightning_dit"
        config.flow.model = architectures.lightning_dit(width=width, depth=depth, num_heads=heads)
    config.flow.train.transform = "none"
    config.flow.train.optimizer.learning_rate = 2e-3  # a narrow network takes a higher one
    config.sampling.num_steps, config.sampling.flow_map_times = 0, ()
    for name in ("judge", "linear_probe", "reconstruction", "frechet"):
        config.evaluation[name] = False
