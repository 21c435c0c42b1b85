"""DiT^DH-XL on DINOv2-B latents at 256 pixels, and the small network that guides it: the headline of the RAE paper.

    python -m rae_jax.main --config=configs/dith_xl.py --config.data.path=TFDS_DIR \\
        --config.encoder.weights=DIR --config.decoder.weights=DIR --config.stats.weights=DIR

It trains the guide, and then what the release of December 2025 trains, for the 800 epochs of which results are
reported. Reported by the paper: gFID 1.53 without guidance and 1.18 with AutoGuidance (in other versions of it 1.51 and
1.13), at 7.2 steps a second on a TPU v5p-128. Nothing of that has been run with this code yet. Samples are guided;
`--config.sampling.guidance_scale=1` makes the unguided ones. Words after the colon, joined by hyphens, change it
(`configs/dith_xl.py:XL-512`):

    S B L XL XXL H G T   the backbone; without a guide and for 80 epochs, unless it is XL
    80                   80 epochs of XL, without a guide: gFID 2.16
    512                  512 pixels: 400 epochs, and a guide of 20 instead of 14. Reported: 1.13, guided
    october              the first release, of October 2025: uniform times

Two things of the release are not copied. Its trainer thaws the position table and the Fourier frequencies, which
`flow.model.trained_tables` does here too if asked; the first release and the papers' description leave them fixed. Its
matrix products are float32 with TF32, the first release's bfloat16, as here: `--config.dtype=bfloat16_3x` is nearer.
"""

from ml_collections import ConfigDict

from configs import architectures, base, released, variants
from rae_jax.models.dit_dh import SIZES

GUIDANCE = {256: (14, 1.42), 512: (20, 1.5)}  # epochs of the guide, and the scale


def get_config(variant: str = "XL") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: a word of `variant` is unknown, or two backbones are named.
    """
    words = variants.words_of(variant, SIZES, ["80"], ["512"], ["october"], file="configs/dith_xl.py")
    backbone = next((word for word in words if word in SIZES), "XL")
    image_size = 512 if "512" in words else 256
    guided = backbone == "XL" and "80" not in words
    config = base.get_config()
    config.stages = ("guide", "flow") if guided else ("flow",)
    config.dtype = "bfloat16"
    released.use_rae(config, "dinov2_b", image_size)

    epochs = 80 if not guided else 400 if image_size == 512 else 800
    guide_epochs, scale = GUIDANCE[image_size]
    for name, size, for_epochs in (("flow", backbone, epochs), ("guide", "S", guide_epochs)):
        section = config[name]
        section.model = architectures.dit_dh(**SIZES[size])  # unrolled: the TPU compiler then makes a faster step
        section.time_distribution = "uniform" if "october" in words else "logit_normal"
        rae_schedule(section.train, epochs=for_epochs)
    released.use_released_sampling(config, points=50)
    if guided:
        config.sampling.guidance = "autoguidance"
        config.sampling.guidance_scale = scale
    config.mesh.fsdp = 16
    return config


def rae_schedule(train: ConfigDict, *, epochs: int) -> None:
    """Fills in how RAE's generators train: a part of one schedule of 800 epochs, however short the part."""
    train.epochs = epochs
    train.batch_size = 1024
    train.ema_decay = 0.9995
    train.optimizer.learning_rate = 2e-4
    train.optimizer.final_learning_rate = 2e-5
    train.optimizer.shape = "linear"
    train.optimizer.warmup_epochs = 40  # at the full rate
    train.optimizer.decay_end_epoch = 800
