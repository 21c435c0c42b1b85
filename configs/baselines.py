"""What the RAE paper compares its latents with: generators on SD-VAE's latents (Table 10) and on pixels (Table 11).

    python -m rae_jax.main --config=configs/baselines.py:sd_vae-dith --config.data.path=TFDS_DIR \\
        --config.teacher.weights=DIR_OF_SD_VAE
    python -m rae_jax.main --config=configs/baselines.py:pixels-dit --config.data.path=TFDS_DIR

Two words after the colon: `sd_vae`, latents of 32 x 32 x 4 in patches of 2, or `pixels`, in patches of 16; and `dit`,
LightningDiT-XL, or `dith`, DiT^DH-XL. Reported by the paper after 80 epochs: gFID 7.13 and 11.7 on SD-VAE, 51.09 and
30.56 on pixels. The schedules are those of `configs/dit_xl.py` and `configs/dith_xl.py`, which the paper does not say.
Nothing of it has been run with this code yet.
"""

from ml_collections import ConfigDict

from configs import architectures, base, released, variants
from configs.dith_xl import rae_schedule
from rae_jax.models import dit_dh, lightning_dit
from rae_jax.models.kl_vae import STABLE_DIFFUSION

SPACES, NETWORKS = ("sd_vae", "pixels"), ("dit", "dith")


def get_config(variant: str = "sd_vae-dit") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: `variant` is not a space and a network.
    """
    space, _, network = variant.partition("-")
    if space not in SPACES or network not in NETWORKS:
        known = [f"{space}-{network}" for space in SPACES for network in NETWORKS]
        raise variants.no_variant("configs/baselines.py", variant, known)
    config = base.get_config()
    config.stages = ("flow",)
    config.dtype = "bfloat16"
    config.stats.weights = "identity"
    patch_size = 16
    if space == "sd_vae":
        patch_size = 2
        config.teacher.model = architectures.kl_vae(**STABLE_DIFFUSION)
    config.autoencoder = "kl" if space == "sd_vae" else "pixels"
    flow = config.flow
    flow.time_distribution = "logit_normal"
    rae_schedule(flow.train, epochs=80)
    if network == "dith":
        flow.model = architectures.dit_dh(**dit_dh.SIZES["XL"], patch_size=patch_size)
    else:
        flow.family = "lightning_dit"
        flow.model = architectures.lightning_dit(**lightning_dit.SIZES["XL"], patch_size=patch_size, scan=True)
        flow.train.ema_decay = 0.9999
        flow.train.optimizer.shape = "constant"
    released.use_released_sampling(config, points=50)
    config.mesh.fsdp = 8
    return config
