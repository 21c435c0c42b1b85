"""RAEv2 on ImageNet at 256 pixels: DINOv3-L's latents, their decoder and statistics, and the in-context generator.

    python -m rae_jax.main --config=configs/raev2_dinov3l.py:k7 --config.data.path=TFDS_DIR \\
        --config.encoder.weights=dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth \\
        --config.discriminator.weights=DINO_VIT_S8_FILE

The word after the colon says of how many blocks the latent is the mean:

    k1    the last block's tokens alone
    k7    every second block from 11 to 23, plus the mean token of the last; what no word means
    k23   all but the first, likewise

    general    with k7 or k23: the decoder trains on four sources, each step on one of them, and no generator follows.
               ImageNet, BLIP3o's captioned images, rendered text and Scale-RAE's FLUX images are to be at the four
               paths of `decoder.sources`, the last three as `python -m tools.prepare_captions` writes them

Three stages: `decoder` (16 epochs), `stats`, `flow` (80 epochs). `--config.stages="('flow',)"` with the released
`decoder.pt` and `stats.pt` as `decoder.weights` and `stats.weights` trains the generator alone. It predicts the data,
its early output has the same loss, and Muon trains it. Samples are guided by the early output, in one pass of the
network for each of 100 steps, as published for k7; `--config.sampling.internal_guidance_scale=1` makes the unguided
ones. Reported by the paper for k7: gFID 1.06 guided and 1.65 without; of k23 rFID 0.18. Nothing of that has been run
with this code.

Not copied: images come through ADM's centre crop, which the release has done beforehand. In the release stage 1
stretches the coordinates of DINOv3's rotary positions by accident, as here; `--config.decoder.coordinate_stretch=1`
does not. Muon's products are float32 in three bfloat16 passes, which costs half of what six do and is far more
exact than the half precisions of the release, `--config.flow.train.optimizer.muon_products=released`.
"""

from ml_collections import ConfigDict

from configs import architectures, base, released, variants
from configs.rae_dinov2b_vitxl import adversarial_stage
from rae_jax.models.decoder import SIZES as DECODERS
from rae_jax.models.dit_in_context import SIZES
from rae_jax.training.durations import DURATIONS

GENERAL = (
    ("tfds:imagenet2012", "data/imagenet", 1.0),
    *(("conversations", f"data/{name}", 1.0) for name in ("blip3o", "rendered_text", "flux")),
)
GENERAL_EPOCH = (
    34_024  # steps: the mean of the four sources' sizes, of 1.28, 31.97, 12.04 and 24.39 million images, / 512
)
LAYERS = {"k1": (), "k7": tuple(range(11, 24, 2)), "k23": tuple(range(1, 24))}


def get_config(variant: str = "k7") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: there is no such variant.
    """
    words = variants.words_of(variant, LAYERS, ["general"], file="configs/raev2_dinov3l.py")
    config = base.get_config()
    config.stages = ("decoder", "stats", "flow")
    config.dtype = "bfloat16"
    config.encoder.dtype = "float32"
    latents(config, LAYERS[next((word for word in words if word in LAYERS), "k7")])

    adversarial_stage(config, "decoder", epochs=16)
    config.decoder.dtype = config.dtype
    config.decoder.coordinate_stretch = 2.0
    config.decoder.train.transform = "center_crop"
    config.decoder.train.evaluate_every = 5000
    config.stats.train.transform = "center_crop"

    if "general" in words:
        config.stages = ("decoder", "stats")
        config.decoder.sources = GENERAL
        for section in (config.decoder.train, config.decoder.loss):
            in_steps(section, GENERAL_EPOCH)
    generator(config)
    muon_schedule(config.flow.train)
    config.flow.train.transform = "center_crop"
    config.mesh.fsdp = 16
    return config


def in_steps(section: ConfigDict, epoch: int) -> None:
    """Says in steps what `section`, or one in it, says in epochs of so many steps."""
    for epochs, _, steps in DURATIONS:
        if epochs in section:
            section[steps], section[epochs] = round(section[epochs] * epoch), 0.0
    for value in section.values():
        if isinstance(value, ConfigDict):
            in_steps(value, epoch)


def latents(config: ConfigDict, layers: tuple[int, ...]) -> None:
    """Makes the latent space that of RAEv2: means of DINOv3-L's `layers`, and the decoder of plain pixels."""
    released.use_pretrained_encoder(config, "dinov3_l")
    config.encoder.model.stored_periods = True
    config.encoder.model.layers = layers
    config.decoder.model = architectures.vit_decoder(patch_size=16, **DECODERS["xl"], trained_tables=True, scan=True)
    config.decoder.plain_pixels = True


def generator(config: ConfigDict) -> None:
    """Fills in the in-context generator, what it predicts and how it is sampled."""
    flow, sampling = config.flow, config.sampling
    flow.family = "dit_in_context"
    flow.model = architectures.dit_in_context(**SIZES["XL"])
    flow.prediction, flow.t_eps = "x", 0.05
    flow.time_distribution, flow.largest_time = "logit_normal", 1.0
    sampling.num_steps = 100
    sampling.internal_guidance_scale = 1.78
    sampling.internal_guidance_interval = (0.1, 1.0)


def muon_schedule(train: ConfigDict) -> None:
    """How the generator trains: at the full rate for 25 epochs, at a tenth of it from the 50th on."""
    train.epochs = 80
    train.batch_size = 1024
    train.ema_decay = 0.9995
    train.optimizer.name = "muon"
    train.optimizer.muon_products = "bfloat16_3x"
    train.optimizer.learning_rate = 2e-4
    train.optimizer.final_learning_rate = 2e-5
    train.optimizer.shape = "linear"
    train.optimizer.warmup_epochs = 25  # at the full rate
    train.optimizer.decay_end_epoch = 50
