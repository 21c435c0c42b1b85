"""Generation with RPiAE: LightningDiT-XL on the bridge's 16 x 16 x 64 latents, at 256 pixels.

    python -m rae_jax.main --config=configs/rpiae_xl.py:80 --config.data.path=TFDS_DIR --config.encoder.weights=DIR \\
        --config.feature_stats.weights=DIR --config.bridge_encoder.weights=DIR --config.bridge_decoder.weights=DIR \\
        --config.decoder.weights=DIR

The directories are those that `configs/rpiae_dinov2b_vitxl.py` leaves: `pivot/weights/encoder`,
`feature_stats/weights`, `bridge/weights/bridge_encoder`, `bridge/weights/bridge_decoder`, `specialisation/weights`.
Variants: `60`, `80` and `800` epochs; `250` after a hyphen samples with 250 points of the reference's grid instead of
50 (`80-250`); `dith` is DiT^DH-XL on the features of stage I, which needs `pivot/weights/encoder` and
`pivot/weights/decoder` and measures their statistics.

Reported by the paper: gFID 2.25 after 80 epochs, 1.51 guided. The guiding network is ours, as RAE has it: the smallest
one, after 14 epochs. Nothing of it has been run at full size with this code yet.
"""

from ml_collections import ConfigDict

from configs import base, dith_xl
from configs.rpiae_dinov2b_vitxl import use_decoder
from rae_jax.models.lightning_dit import SIZES

EPOCHS, POINTS = ("60", "80", "800"), {"50": 50, "250": 250}


def get_config(variant: str = "80") -> ConfigDict:
    epochs, _, points = variant.partition("-")
    if epochs not in (*EPOCHS, "dith") or points not in ("", *POINTS):
        raise ValueError(
            f"configs/rpiae_xl.py has no variant {variant!r}; there are {', '.join(EPOCHS)}, dith, and these with -250"
        )
    if epochs == "dith":
        config = dith_xl.get_config()
        config.stages = ("stats", "flow")
    else:
        config = lightning_dit_xl(int(epochs))
    config.sampling.num_steps = POINTS[points or "50"] - 1
    config.sampling.grid = "released"
    return config


def lightning_dit_xl(epochs: int) -> ConfigDict:
    """LightningDiT-XL for some epochs, and the small one that guides it."""
    config = base.get_config()
    config.stages = ("flow", "guide")
    config.dtype = "bfloat16"
    base.use_pretrained_encoder(config, "dinov2_b")
    config.encoder.model.scan = True
    base.use_bridge(config, latent_channels=64)
    use_decoder(config, convolutional=False)
    config.stats.weights = "identity"

    for name, size, for_epochs in (("flow", "XL", epochs), ("guide", "S", 14)):
        section = config[name]
        section.family = "lightning_dit"
        section.model = base.lightning_dit(**SIZES[size], qk_norm=True, scan=True)
        section.time_distribution = "logit_normal"
        train = section.train
        train.batch_size = 1024
        train.epochs = for_epochs
        train.ema_decay = 0.9999
        train.optimizer.learning_rate = 2e-4
        if for_epochs > 80:
            train.optimizer.final_learning_rate = 2e-5
            train.optimizer.shape = "linear"
            train.optimizer.warmup_epochs = 40  # at the full rate
            train.optimizer.decay_end_epoch = for_epochs
    config.sampling.guidance = "autoguidance"
    config.sampling.guidance_scale = 2.05
    config.mesh.fsdp = 8
    return config
