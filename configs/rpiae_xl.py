"""Generation with RPiAE: LightningDiT-XL on the bridge's 16 x 16 x 64 latents, at 256 pixels.

    python -m rae_jax.main --config=configs/rpiae_xl.py:80 --config.data.path=TFDS_DIR --config.encoder.weights=DIR \\
        --config.bridge_encoder.weights=DIR --config.bridge_decoder.weights=DIR --config.decoder.weights=DIR

The directories are those that `configs/rpiae_dinov2b_vitxl.py` leaves: `pivot/weights/encoder`,
`bridge/weights/bridge_encoder`, `bridge/weights/bridge_decoder`, `specialisation/weights`. Words after the colon,
joined by hyphens:

    60 80 800   epochs, all of one schedule of 800
    250 50      points of the reference's grid in sampling: 250, as results are, or 50, as its previews
    dith        DiT^DH-XL on the features of stage I, which needs `pivot/weights/encoder` and `pivot/weights/decoder`
                and measures their statistics (the preliminary experiments, Table 7)
    conv        with dith: the convolutional decoder of `configs/rpiae_dinov2b_vitxl.py:conv`

The guide is the generator itself after 20 epochs: its checkpoints are kept every 20, each of about 11 GB. Reported by
the paper, without and with guidance: gFID 2.46 and 2.06 after 60 epochs, 2.25 and 1.51 after 80, 1.68 and 1.09 after
800. Nothing of it has been run at full size with this code yet.
"""

from ml_collections import ConfigDict

from configs import architectures, base, dith_xl, released, variants
from configs.rpiae_dinov2b_vitxl import use_decoder
from rae_jax.models.lightning_dit import SIZES

EPOCHS = ("60", "80", "800")


def get_config(variant: str = "80") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: a word of `variant` is unknown, or two contradict each other.
    """
    words = variants.words_of(variant, (*EPOCHS, "dith"), ["50", "250"], ["conv"], file="configs/rpiae_xl.py")
    if "conv" in words and "dith" not in words:
        raise ValueError("configs/rpiae_xl.py: conv is for dith; the bridge has a transformer decoder")
    if "dith" in words:
        config = dith_xl.get_config("XL-80")
        config.stages = ("stats", "flow")
        use_decoder(config, convolutional="conv" in words)
    else:
        config = lightning_dit_xl(int(next((word for word in words if word in EPOCHS), "80")))
    released.use_released_sampling(config, points=50 if "50" in words else 250)
    return config


def lightning_dit_xl(epochs: int) -> ConfigDict:
    """LightningDiT-XL for some epochs, guided by what it was after 20."""
    config = base.get_config()
    config.stages = ("flow",)
    config.dtype = "bfloat16"
    released.use_pretrained_encoder(config, "dinov2_b")
    config.encoder.model.scan = True
    released.use_bridge(config, latent_channels=64)
    use_decoder(config, convolutional=False)
    config.stats.weights = config.feature_stats.weights = "identity"

    for section in (config.flow, config.guide):
        section.family = "lightning_dit"
        section.model = architectures.lightning_dit(**SIZES["XL"], qk_norm=True)
    config.flow.time_distribution = "logit_normal"
    dith_xl.rae_schedule(config.flow.train, epochs=epochs)
    config.flow.train.keep_every_epochs = 20
    config.guide.weights = f"{{workdir}}/flow/checkpoints/{20 * 1251}"  # of ImageNet's epochs in batches of 1,024
    config.sampling.guidance = "autoguidance"
    config.sampling.guidance_scale = 2.05
    config.mesh.fsdp = 8
    return config
