"""Text to image on RAE latents (RAE, appendix N), as Scale-RAE's scripts have it: Qwen2.5-1.5B and a DiT of 2.4 B.

    python -m rae_jax.main --config=configs/t2i_qwen1_5b_dit2_4b.py --config.data.path=DIR \\
        --config.encoder.weights=SIGLIP2 --config.decoder.weights=siglip2_decoder/model.pt \\
        --config.language_model.weights=QWEN --config.language_model.tokenizer=QWEN

`DIR` is what `python -m tools.prepare_captions` writes; several are mixed by `config.text_to_image.mixture`, as the
paper's three are (`MIXTURE`). `QWEN` is the directory of Qwen/Qwen2.5-1.5B-Instruct. Words after the colon, joined by
hyphens, change it:

    stage2         BLIP-3o-60k, four epochs at a context of 1,024, from the weights of stage 1: give its three parts as
                   the weights of language_model, adapters and text_dit
    webssl         the encoder WebSSL-300M, whose last norm is the affine-free one here
    vae            the generator makes latents of the FLUX VAE, 2 x 2 of them a token; questions keep SigLIP 2
    understanding  without generation
    paper          30,000 steps, as the paper says; the scripts say one epoch of about 70 million images

Sampled as the script does, the misread list of times included; `config.sampling.method=euler` is what was meant. Not
run at full size with this code.
"""

from ml_collections import ConfigDict

from configs import architectures, base, released, variants
from rae_jax.models.language_model import SIZES as LANGUAGE_MODELS
from rae_jax.models.text_to_image import SIZES as DITS

IMAGES = 70_000_000
MIXTURE = {"blip3o_web": 39.0, "flux_synthetic": 24.7, "cambrian_7m": 7.0}  # millions of images
ROWS = 151_667  # of the table of Qwen2.5-1.5B, cut to the tokenizer with the two marks around an image


def get_config(variant: str = "") -> ConfigDict:
    return text_to_image("qwen2.5-1.5b", "2.4B", variant, file="configs/t2i_qwen1_5b_dit2_4b.py")


def text_to_image(language_model: str, dit: str, variant: str, *, file: str) -> ConfigDict:
    """The experiment with a language model and a DiT of named sizes.

    Raises:
      ValueError: a word of `variant` is unknown, or two contradict each other; `file` is named.
    """
    words = variants.words_of(variant, ("stage2", "paper"), ("webssl", "vae"), ("understanding",), file=file)
    config = base.get_config()
    config.stages = ("text_to_image",)
    # A TPU multiplies float32 in one bfloat16 pass unless told otherwise, as it does for the scripts.
    config.dtype = "bfloat16"
    config.data.source = "conversations"
    config.data.image_size = 256
    config.data.train_images = IMAGES
    released.use_rae(config, "webssl_300m" if "webssl" in words else "siglip2_so400m_14", 256)
    config.encoder.model.scan = config.decoder.model.scan = True
    config.stats.weights = "identity"  # the encoder's last norm is all

    fields = LANGUAGE_MODELS[language_model] | {"vocabulary": ROWS}
    config.language_model.model = architectures.language_model(**fields, scan=True, remat="full")
    config.text_dit.model = architectures.text_dit(**DITS[dit], scan=True, remat="full")
    if "vae" in words:
        use_flux_vae(config)

    section, second = config.text_to_image, "stage2" in words
    config.language_model.context = 1024 if second else 512
    if second:
        config.data.train_images = 60_000
    train = section.train
    train.batch_size = 2048
    train.ema_decay = 0.0
    train.epochs = 4 if second else 1
    if "paper" in words:
        train.epochs, train.steps = 0, 30_000
    train.checkpoint_every = 1000
    rate = 5.66e-5 if second else 5.65e-5
    for optimizer, times, beta2 in ((train.optimizer, 1, 0.999), (section.image_optimizer, 10, 0.95)):
        schedule(optimizer, rate * times, beta2, warmup=0.03 if second else 0.0134, train=train)
    if "understanding" in words:
        section.trains = ("language_model", "adapters")

    config.mesh.fsdp = 64
    config.sampling.num_steps, config.sampling.grid = 49, "scale_rae"
    config.sampling.method = "euler_as_coded"
    config.sampling.batch_size = 64
    return config


def schedule(optimizer: ConfigDict, rate: float, beta2: float, *, warmup: float, train: ConfigDict) -> None:
    """A straight warm-up of a share of the run, then a cosine to zero at its end."""
    optimizer.learning_rate, optimizer.final_learning_rate = rate, 0.0
    optimizer.shape, optimizer.warmup_from_zero = "cosine", True
    optimizer.beta1, optimizer.beta2 = 0.9, beta2
    if train.epochs:
        optimizer.warmup_epochs, optimizer.decay_end_epoch = warmup * train.epochs, train.epochs
    else:
        optimizer.warmup_steps, optimizer.decay_end_step = round(warmup * train.steps), train.steps


def use_flux_vae(config: ConfigDict) -> None:
    """Makes the latent space that of FLUX.1's VAE, `config.teacher`, with 2 x 2 of its latents a token."""
    config.autoencoder, config.latent_patch_size = "kl", 2
    config.teacher.model = architectures.kl_vae(
        channels=(128, 256, 512, 512), latent_channels=16, quant=False, post_quant=False, scaling_factor=0.3611,
        shift_factor=0.1159,
    )  # fmt: skip
