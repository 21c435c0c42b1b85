"""RAE's stage 1: the ViT-XL decoder of DINOv2-B latents, and their statistics, on ImageNet at 256 pixels.

    python -m rae_jax.main --config=configs/rae_dinov2b_vitxl.py --config.data.path=TFDS_DIR \\
        --config.encoder.weights=DIR --config.discriminator.weights=DINO_VIT_S8_FILE

Words after the colon, joined by hyphens, change it (`configs/rae_dinov2b_vitxl.py:vitb-paper`):

    december   the release of December 2025; what no word means
    november   that of November 2025, which differs in what it does not synchronise between processes only: here the
               same as december
    october    the release of October 2025: betas (0.5, 0.9), the full rate from the first step, LPIPS of images in
               [0, 1], and fakes that are the decoder's own images of noisy latents. Who retrained with both reports
               the better gFID for this one and no better rFID: choose a decoder by the gFID of one fixed generator
    paper      the paper's text: sigma half-normal, adaptive weight by the pixels, DiffAug's cutout; betas of its Table
               12 and a discriminator whose rate falls over its own 10 epochs
    vitb vitl  the smaller decoders
    512        512 pixels, encoder fed 448
    up512      512 pixels from the 256 tokens of 224: decoder patches twice as large
    up378      378 pixels from the same: 27 x 27 decoder patches of 14, for which the 16 x 16 tokens are resampled

Statistics are a variance alone, of images and their mirror images, as those that the generators were trained with.
`configs/rae_siglip2b_vitxl.py`, `configs/rae_maeb_vitxl.py`, `configs/rae_dinov2s_vitxl.py` and
`configs/rae_dinov2l_vitxl.py` are the same on other encoders. None of them has been run at full size with this code.

Not copied: the released code trains each process's discriminator apart from the others', for want of an average of
their gradients. Here there is one, of the whole batch, which is what one process of it does;
`--config.discriminator.apart=8` has eight, but weighs them against the reconstruction all together. And it thaws the
decoder's position table, which `decoder.model.trained_tables` does here too if asked.
"""

from ml_collections import ConfigDict

from configs import architectures, base, released, variants
from rae_jax.models.decoder import SIZES

DECODERS = {"vitb": "b", "vitl": "l"}
PRESETS, RESOLUTIONS = ("december", "november", "october", "paper"), ("512", "up512", "up378")


def get_config(variant: str = "") -> ConfigDict:
    return stage1("dinov2_b", variant, file="configs/rae_dinov2b_vitxl.py")


def stage1(encoder: str, variant: str, *, file: str) -> ConfigDict:
    """The experiment on `encoder`, a name of `models/vit.py: PRETRAINED`.

    Raises:
      ValueError: a word of `variant` is unknown, or two contradict each other; `file` is named.
    """
    words = variants.words_of(variant, DECODERS, PRESETS, RESOLUTIONS, file=file)
    config = base.get_config()
    config.stages = ("decoder", "stats")
    released.use_rae(config, encoder, 512 if "512" in words else 256)
    config.encoder.model.scan = True
    size = next((SIZES[DECODERS[word]] for word in words if word in DECODERS), SIZES["xl"])
    config.decoder.model = architectures.vit_decoder(patch_size=16, **size, scan=True)
    if "up512" in words:
        config.data.image_size = 512
        config.decoder.model.patch_size = 32
    if "up378" in words:
        config.data.image_size = 378
        config.decoder.model.patch_size, config.decoder.model.grid_size = 14, 27

    adversarial_stage(config, "decoder", epochs=16)
    train, loss = config.decoder.train, config.decoder.loss
    train.evaluate_every = 5000
    if {"october", "paper"} & set(words):
        for optimizer in (train.optimizer, loss.discriminator_optimizer):
            optimizer.beta1, optimizer.beta2 = 0.5, 0.9
            optimizer.warmup_from_zero = "paper" in words
    if "october" in words:
        loss.lpips_range = (0.0, 1.0)
        loss.discriminator_fakes = "noisy"
    if "paper" in words:
        config.decoder.noise_distribution = "half_normal"
        loss.adaptive_weight = "pixels"
        loss.discriminator_optimizer.decay_end_epoch = 10
        config.discriminator.cutout = 0.2

    config.stats.train.transform = "center_crop_flip"
    config.mesh.fsdp = 8
    return config


def adversarial_stage(config: ConfigDict, stage: str, *, epochs: int, batch_size: int = 512) -> None:
    """Fills in the full loss of a stage that reconstructs, and the schedules of it and of the discriminator."""
    train, loss = config[stage].train, config[stage].loss
    reconstruction_stage(train, epochs=epochs, batch_size=batch_size)
    loss.lpips_weight = 1.0
    loss.gan_weight = 0.75
    loss.discriminator_from_epoch = 6
    loss.gan_from_epoch = 8
    # Of its own updates, of which there are fewer: the release lets it end at 8.2e-5 like this.
    schedule(loss.discriminator_optimizer, epochs=epochs)


def reconstruction_stage(train: ConfigDict, *, epochs: int, batch_size: int = 512) -> None:
    """Fills in how a stage trains that encodes or decodes images."""
    train.batch_size = batch_size
    train.epochs = epochs
    train.ema_decay = 0.9978
    train.pictures_every = 2500
    schedule(train.optimizer, epochs=epochs)


def schedule(optimizer: ConfigDict, *, epochs: int) -> None:
    """One epoch of warm-up, then a cosine to a tenth of the rate, which it reaches after `epochs`."""
    optimizer.learning_rate = 2e-4
    optimizer.final_learning_rate = 2e-5
    optimizer.shape = "cosine"
    optimizer.warmup_epochs = 1
    optimizer.warmup_from_zero = True
    optimizer.decay_end_epoch = epochs
    optimizer.clip_norm = 0.0
