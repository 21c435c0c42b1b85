"""A folder of your own images: the published decoder is fine-tuned on them, and a DiT^DH generates more of them.

    python -m rae_jax.main --config=configs/finetune.py --config.data.path=FOLDER

`FOLDER/<class>/*.jpg` trains with classes, however many there are; `FOLDER/*.jpg` without. docs/own_images.md has the
rest. The encoder (DINOv2-B) and the decoder that is fine-tuned are read from where `configs/published.py` says, or from
`--config.encoder.weights=` and `--config.decoder.weights=`. The stages:

    decoder_tuning  the decoder again, from its published weights: L1 and LPIPS on noisy latents
    stats           mean and variance of your images' latents
    flow            DiT^DH on them, from nothing

Words after the colon, joined by hyphens, change it (`configs/finetune.py:decoder`, `configs/finetune.py:flow-xl`):

    decoder      only fine-tunes the decoder
    flow         leaves the decoder as it is
    s b l xl     the backbone of DiT^DH; b without a word
    tiny         64 pixels and random weights, in a minute on a CPU: nothing is learnt
"""

from ml_collections import ConfigDict

from configs import architectures, base, digits, published, variants
from rae_jax.models.dit_dh import SIZES

BACKBONES = {name.lower(): name for name in SIZES}


def get_config(variant: str = "") -> ConfigDict:
    words = variants.words_of(variant, ["decoder", "flow"], BACKBONES, ["tiny"], file="configs/finetune.py")
    backbone = next((word for word in words if word in BACKBONES), "b")

    config = published.get_config("dinov2_b_256")
    config.dtype = "bfloat16"
    config.stages = ("decoder_tuning", "stats", "flow")
    config.stats.weights = ""  # those of your images
    config.data.source = "folder"
    config.data.test_split = "test"
    config.data.held_out_share = 0.05
    config.sampling.num_samples = 64
    config.sampling.batch_size = 64
    config.sampling.num_steps = 50
    config.sampling.grid = "full"

    with config.unlocked():
        config.decoder_tuning = base.reconstruction(autoencoder="rae", noise_tau=0.8)
        config.decoder_tuning.trains = config.decoder_tuning.initial = ("decoder",)
        config.decoder_tuning.train = base.train(transform="random_crop")
    config.decoder_tuning.loss.lpips_weight = 1.0
    stage(config.decoder_tuning.train, steps=5_000, batch_size=32, learning_rate=2e-5)
    config.decoder_tuning.train.evaluate_every = 1000

    config.flow.num_classes = -1
    config.flow.model = architectures.dit_dh(**SIZES[BACKBONES[backbone]], scan=True)
    stage(config.flow.train, steps=50_000, batch_size=64, learning_rate=1e-4)
    config.stats.train.batch_size = 64

    if "tiny" in words:
        shrink(config)
    if "decoder" in words:
        config.stages = ("decoder_tuning",)
    if "flow" in words:
        config.stages = ("stats", "flow")
    return config


def stage(train: ConfigDict, *, steps: int, batch_size: int, learning_rate: float) -> None:
    """Fills in how a stage trains: the schedule of the small experiments, on fewer steps than ImageNet needs."""
    transform = train.transform
    digits.stage(train, steps=steps, batch_size=batch_size, learning_rate=learning_rate, ema_decay=0.999)
    train.transform = transform  # crops: images are of any size
    train.checkpoint_every = 1000
    train.pictures_every = 1000


def shrink(config: ConfigDict) -> None:
    """Makes every part small, and random where it would be published."""
    config.dtype = "float32"
    config.data.image_size = config.encoder.input_size = 64
    config.data.num_workers = 0
    config.encoder.weights = config.decoder.weights = "random"
    config.encoder.model = architectures.vision_transformer(
        image_size=64, patch_size=16, width=32, depth=1, num_heads=2
    )
    config.decoder.model = architectures.vit_decoder(patch_size=16, width=32, depth=1, num_heads=2, mlp_dim=64)
    config.lpips.network = "alexnet"  # a fortieth of VGG16's work
    config.flow.model = architectures.dit_dh(
        width=32, depth=1, num_heads=2, head_width=32, head_depth=1, head_num_heads=2
    )
    for name in ("decoder_tuning", "flow"):
        stage(config[name].train, steps=20, batch_size=8, learning_rate=1e-3)
        config[name].train.log_every = 5
        config[name].train.checkpoint_every = config[name].train.pictures_every = 10
    config.decoder_tuning.train.evaluate_every = 10
    config.stats.train.batch_size = 8
    config.sampling.num_samples = 16
    config.sampling.num_steps = 4
