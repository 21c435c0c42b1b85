"""Text to image on RPiAE's latents: Bagel's mixture of transformers from Qwen2.5-0.5B, at 256 pixels (Section 4.3).

    python -m rae_jax.main --config=configs/rpiae_t2i.py --config.data.path=DIR \\
        --config.language_model.weights=QWEN_DIR --config.mixture.tokenizer=QWEN_DIR --config.encoder.weights=DIR \\
        --config.bridge_encoder.weights=DIR --config.bridge_decoder.weights=DIR --config.decoder.weights=DIR

The tokenizer's directories are those of `configs/rpiae_xl.py`; CC12M-LLaVA-Next is read as `data/told_files.py` says.
Words after the colon, joined by hyphens:

    head    DiT^DH's head on the mixture's states, in place of a linear layer
    rae     the features of a frozen DINOv2-B, 768 channels: the row RAE of Table 4, with a time shift of 6.93
    vae     the latents of the FLUX VAE, 2 x 2 of them a token, as Bagel's: the row FLUX VAE; its weights are
            `--config.teacher.weights`, in place of those of encoder, bridge and decoder
    chips64 576 rows a batch instead of 560, which 64 chips do not divide: 403,000 tokens; nothing is computed twice, as
            nine rows a chip take 13 GiB

A step has 1,120 images of about 350 tokens each with their captions, 392,000 tokens: the paper's 384,000 to 400,000.
Reported: GenEval 0.75 and DPG-Bench 82.59, with the head 0.76 and 83.34. Nothing of it has been run at full size with
this code yet.
"""

from ml_collections import ConfigDict

from configs import architectures, base, released, variants
from configs.rpiae_dinov2b_vitxl import use_decoder
from configs.t2i_qwen1_5b_dit2_4b import use_flux_vae
from rae_jax.models.language_model import SIZES

QWEN = SIZES["qwen2.5-0.5b"]
TOKENIZERS = ("rae", "vae")


def get_config(variant: str = "") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: a word of `variant` is unknown, or two exclude each other.
    """
    words = variants.words_of(variant, ["head"], TOKENIZERS, ["chips64"], file="configs/rpiae_t2i.py")
    config = base.get_config()
    config.stages = ("mixture",)
    config.dtype = "bfloat16"
    released.use_pretrained_encoder(config, "dinov2_b")
    config.encoder.model.scan = True
    released.use_bridge(config, latent_channels=64)
    if "rae" in words:
        config.autoencoder = "rae"
        config.stages = ("stats", "mixture")
    else:
        config.stats.weights = config.feature_stats.weights = "identity"
    if "vae" in words:
        use_flux_vae(config)
    use_decoder(config, convolutional=False)
    config.data.source = "captions"

    config.language_model.model = architectures.language_model(**QWEN)
    fields = {name: value for name, value in QWEN.items() if name not in ("tied", "qk_norm")}
    config.mixture.model = architectures.mixture_of_transformers(
        **fields, wide_head="head" in words, remat="none" if "chips64" in words else "full"
    )
    config.mixture.initial = "language_model"
    train = config.mixture.train
    train.steps = 200_000
    train.batch_size = 576 if "chips64" in words else 560
    bagel_optimizer(train.optimizer)
    train.ema_decay = 0.9999

    bagel_sampling(config)
    config.mesh.fsdp = 8
    return config


def bagel_optimizer(section: ConfigDict) -> None:
    """Bagel's optimizer: a constant rate after 2,000 steps."""
    section.learning_rate = section.final_learning_rate = 1e-4
    section.shape = "constant"
    section.warmup_from_zero = True
    section.warmup_steps = 2000
    section.beta1, section.beta2 = 0.9, 0.95
    section.epsilon = 1e-15
    section.weight_decay = 0.0
    section.clip_norm = 1.0


def bagel_sampling(config: ConfigDict) -> None:
    """50 points, guided by the text with a scale of 4, the norm kept as a whole."""
    config.flow.num_classes = 0
    config.sampling.labels = "unconditional"
    config.sampling.num_steps = 49
    config.sampling.guidance_scale = 4.0
    config.sampling.guidance_interval = (0.0, 1.0)
    config.sampling.renormalisation = "global"
    config.sampling.least_norm = 0.0
