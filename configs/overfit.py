"""One image overfitted: a transformer narrower than the tokens cannot fit even that (RAE, Theorem 1 and Appendix G).

    python -m rae_jax.main --config=configs/overfit.py:768-12 --config.data.path=FOLDER_WITH_ONE_IMAGE \\
        --config.encoder.weights=DIR --config.decoder.weights=DIR

Two numbers after the colon: the width of a LightningDiT, a multiple of 64, and its depth. It trains 1,200 steps of 32
copies of the image's DINOv2-B latent, without an average, and samples with 25 steps. `flow.train.log_every` steps show
the loss that it comes down to. Nothing of it has been run with this code yet.
"""

from ml_collections import ConfigDict

from configs import architectures, base


def get_config(variant: str = "768-12") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: `variant` is not two numbers, or the width no multiple of 64.
    """
    width, _, depth = variant.partition("-")
    if not (width.isdigit() and depth.isdigit() and int(depth) and int(width) and int(width) % 64 == 0):
        raise ValueError(f"configs/overfit.py:{variant} is no width, a multiple of 64, and a depth, as 768-12")
    config = base.get_config()
    config.stages = ("flow",)
    base.use_rae(config, "dinov2_b", 256)
    config.stats.weights = "identity"
    config.data.source = "folder"
    config.data.num_workers = 0
    config.flow.num_classes, config.sampling.labels = 0, "unconditional"
    config.flow.label_dropout = 1.0
    config.flow.family = "lightning_dit"
    config.flow.model = architectures.lightning_dit(
        width=int(width), depth=int(depth), num_heads=int(width) // 64, scan=True
    )
    train = config.flow.train
    train.transform = "center_crop"
    train.steps = 1200
    train.batch_size = 32
    train.ema_decay = 0.0
    train.log_every = 50
    train.optimizer.learning_rate = 2e-4
    train.optimizer.clip_norm = 0.0
    config.sampling.num_samples = 8
    config.sampling.batch_size = 8
    config.sampling.num_steps = 25
    return config
