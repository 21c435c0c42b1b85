"""Everything published with the papers, ready to sample from or to reconstruct with: one variant a model.

    hf download nyu-visionx/RAE-collections --local-dir models
    python -m rae_jax.main --config=configs/published.py:dit_dh_xl_256 --mode=sample --num_samples=100

Generators, sampled as their papers report (README.md has the table):

    dit_dh_xl_256, dit_dh_xl_512        RAE's DiT^DH-XL on DINOv2-B, with AutoGuidance
    dit_xl_siglip2_256, dit_xl_mae_256  RAE's LightningDiT-XL on SigLIP 2-B and MAE-B
    mf_rae_256, mf_rae_512              MF-RAE's flow maps; `--config.flow_map.weights=FILE` says where they are
    raev2_k7_256                        RAEv2's generator on means of seven of DINOv3-L's blocks, guided by itself
    rpiae_256                           RPiAE with LightningDiT-XL and AutoGuidance

    hf download qihoo360/RPiAE --local-dir models/RPiAE

RAEv2's files are in a collection of their own, with its encoder:

    hf download nyu-visionx/RAEv2-models --local-dir models/RAEv2

Autoencoders, for `--mode=evaluate`, with the encoder of Hugging Face's hub under `models/`:

    dinov2_b_256, dinov2_s_256, dinov2_l_256, siglip2_b_256, mae_b_256, dinov2_b_512, siglip2_b_512, mae_b_512

    hf download google/siglip2-base-patch16-256 --local-dir models/google/siglip2-base-patch16-256
    python -m rae_jax.main --config=configs/published.py:siglip2_b_256 --mode=evaluate \\
        --config.data.source=folder --config.data.path=FOLDER

At 512 pixels the encoder is fed 512 (DINOv2: 448) and the latent is 32 x 32; of SigLIP 2 and MAE no such decoder is in
the collection, so that `decoder.weights` and `stats.weights` are empty there. A decoder that upsamples, twice the
pixels from the same latents, is `--config.decoder.model.patch_size=32 --config.data.image_size=512` on a variant of
256 pixels. The published files themselves have not been read with this code yet.
"""

from ml_collections import ConfigDict

from configs import architectures, base, raev2_dinov3l, released, variants
from configs.mf_rae_cmt_256 import FEW_STEPS_512
from rae_jax.models.dit_dh import SIZES as DIT_DH
from rae_jax.models.lightning_dit import SIZES as LIGHTNING_DIT
from rae_jax.models.vit import PRETRAINED

# Encoder and image size: where the collection has the decoder and the statistics.
AUTOENCODERS = {
    ("dinov2_s", 256): ("dinov2/wReg_small/ViTXL_n08", "dinov2/wReg_small/imagenet1k"),
    ("dinov2_b", 256): ("dinov2/wReg_base/ViTXL_n08", "dinov2/wReg_base/imagenet1k"),
    ("dinov2_l", 256): ("dinov2/wReg_large/ViTXL_n08", "dinov2/wReg_large/imagenet1k"),
    ("dinov2_b", 512): ("dinov2/wReg_base/ViTXL_n08_i512", "dinov2/wReg_base/imagenet1k_512"),
    ("siglip2_b", 256): ("siglip2/base_p16_i256/ViTXL_n08", "siglip2/base_p16_i256/ImageNet1k"),
    ("siglip2_b", 512): ("", ""),
    ("mae_b", 256): ("mae/base_p16/ViTXL_n08", "mae/base_p16/ImageNet1k"),
    ("mae_b", 512): ("", ""),
}


def get_config(variant: str = "dit_dh_xl_256") -> ConfigDict:
    autoencoders = {f"{encoder}_{size}": (encoder, size) for encoder, size in AUTOENCODERS}
    if variant in autoencoders:
        config = autoencoder(*autoencoders[variant])
        config.encoder.weights = f"models/{PRETRAINED[autoencoders[variant][0]].checkpoint}"
        config.evaluation.reconstruction = True
        return config
    if variant in GENERATORS:
        return GENERATORS[variant]()
    raise variants.no_variant("configs/published.py", variant, [*GENERATORS, *autoencoders])


def autoencoder(encoder: str, size: int) -> ConfigDict:
    """The latent space of a released decoder; what is sampled needs no weights of the encoder."""
    config = base.get_config()
    released.use_rae(config, encoder, size)
    config.encoder.model.scan = config.decoder.model.scan = True
    decoder, statistics = AUTOENCODERS[encoder, size]
    config.decoder.weights = decoder and f"models/decoders/{decoder}/model.pt"
    config.stats.weights = statistics and f"models/stats/{statistics}/stat.pt"
    released.use_released_sampling(config, points=50)
    return config


def dit_dh_xl(size: int, flow: str, guide: str, scale: float) -> ConfigDict:
    """DiT^DH-XL, guided by DiT^DH-S."""
    config = autoencoder("dinov2_b", size)
    folder = f"models/DiTs/Dinov2/wReg_base/ImageNet{size}"
    config.flow.model = architectures.dit_dh(**DIT_DH["XL"], scan=True)
    config.flow.weights = f"{folder}/{flow}/stage2_model.pt"
    config.guide.model = architectures.dit_dh(**DIT_DH["S"], scan=True)
    config.guide.weights = f"{folder}/{guide}/stage2_model.pt"
    config.sampling.guidance = "autoguidance"
    config.sampling.guidance_scale = scale
    return config


def lightning_dit_xl(encoder: str, name: str) -> ConfigDict:
    """LightningDiT-XL with patches of one token."""
    config = autoencoder(encoder, 256)
    config.flow.family = "lightning_dit"
    config.flow.model = architectures.lightning_dit(**LIGHTNING_DIT["XL"], scan=True)
    config.flow.weights = f"models/DiTs/{name}/b16/ImageNet256/DiT-XL/stage2_model.pt"
    return config


def mf_rae(size: int) -> ConfigDict:
    """A flow map of DiT^DH-XL's size: `samples_1step.npz`, `samples_2step.npz`, and of three and four steps at 512."""
    config = autoencoder("dinov2_b", size)
    config.flow.model = architectures.dit_dh(**DIT_DH["XL"], scan=True)
    config.sampling.num_steps = 0
    if size == 512:
        config.sampling.flow_map_times = FEW_STEPS_512
    return config


def rpiae() -> ConfigDict:
    """LightningDiT-XL after 800 epochs on RPiAE's latent, guided by itself after 20; nothing is normalised."""
    config = autoencoder("dinov2_b", 256)
    released.use_bridge(config, latent_channels=64)
    config.decoder.weights = config.bridge_decoder.weights = "models/RPiAE/rpiae_stage3_1_c64_ema.pt"
    config.feature_stats.weights = config.stats.weights = "identity"
    for section, epoch in ((config.flow, 800), (config.guide, 20)):
        section.family = "lightning_dit"
        section.model = architectures.lightning_dit(**LIGHTNING_DIT["XL"], qk_norm=True, scan=True)
        section.weights = f"models/RPiAE/LightningDiT/ep-{epoch:07}.pt"
    config.flow.time_distribution = "logit_normal"
    config.sampling.guidance = "autoguidance"
    config.sampling.guidance_scale = 2.05
    released.use_released_sampling(config, points=250)
    return config


def raev2() -> ConfigDict:
    """RAEv2's generator on the mean of seven layers, guided by its early output."""
    config = base.get_config()
    raev2_dinov3l.latents(config, raev2_dinov3l.LAYERS["k7"])
    raev2_dinov3l.generator(config)
    config.encoder.model.scan = config.flow.model.scan = True
    folder = "models/RAEv2"
    config.encoder.weights = f"{folder}/encoders/dinov3/dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth"
    for part in ("decoder", "stats"):
        config[part].weights = f"{folder}/stage1/imagenet/dinov3l-k7/{part}.pt"
    config.flow.weights = f"{folder}/stage2/imagenet/dinov3l-k7/checkpoint.pt"
    return config


GENERATORS = {
    "dit_dh_xl_256": lambda: dit_dh_xl(256, "DiTDH-XL", "DiTDH-S_ep14", 1.42),
    "dit_dh_xl_512": lambda: dit_dh_xl(512, "DiTDH-XL_ep400", "DiTDH-S_ep20", 1.5),
    "dit_xl_siglip2_256": lambda: lightning_dit_xl("siglip2_b", "SigLIP2"),
    "dit_xl_mae_256": lambda: lightning_dit_xl("mae_b", "MAE"),
    "mf_rae_256": lambda: mf_rae(256),
    "mf_rae_512": lambda: mf_rae(512),
    "raev2_k7_256": raev2,
    "rpiae_256": rpiae,
}
