"""Generation in one step on SD-VAE's latents at 256 pixels, from data alone: what MF-RAE is compared with.

    python -m rae_jax.main --config=configs/meanflow_sd_vae.py:imf --config.data.path=TFDS_DIR \\
        --config.teacher.weights=DIR_OF_SD_VAE

Words after the colon, joined by hyphens:

    imf         Improved Mean Flows: the derivative is taken along the flow map's own velocity
    meanflow    MeanFlow: along that of each pair of data and noise
    B L XL      the size of the network, instead of XL

The flow map has classifier-free guidance as an input, scales from 1 to 8 and their intervals, and is sampled with
`sampling.guidance_scale` and `sampling.guidance_interval` in one evaluation. Times, share of intervals, schedule and
the scale and interval below are those of iMF's released config for its B/2, which says nothing of the others. Ours are
the network, a LightningDiT where iMF has tokens for its conditions and a second output, and MF-RAE's weights of the
loss. Reported by the iMF paper, with its networks: FID 1.72 in one step and 1.54 in two (XL/2), 3.39 (B/2); by the
MeanFlow paper, whose guidance is fixed, 3.43 (XL/2). Nothing of it has been run with this code yet.
"""

from ml_collections import ConfigDict

from configs import architectures, base, variants
from rae_jax.models.kl_vae import STABLE_DIFFUSION
from rae_jax.models.lightning_dit import SIZES


def get_config(variant: str = "imf") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: a word of `variant` is unknown, or two exclude each other.
    """
    words = variants.words_of(variant, ("imf", "meanflow"), ("B", "L", "XL"), file="configs/meanflow_sd_vae.py")
    config = base.get_config()
    config.stages = ("flow_map",)
    config.dtype = "bfloat16_3x"  # as MF-RAE: a derivative makes rounding larger
    config.autoencoder = "kl"
    config.teacher.model = architectures.kl_vae(**STABLE_DIFFUSION)
    config.stats.weights = "identity"
    config.flow.family = "lightning_dit"
    size = next((word for word in words if word in SIZES), "XL")
    config.flow.model = architectures.lightning_dit(**SIZES[size], patch_size=2, scan=True)

    flow_map = config.flow_map
    flow_map.initial = ""
    flow_map.eta = 0.0
    flow_map.derivative = "jvp"
    flow_map.tangent = "target" if "meanflow" in words else "own"
    flow_map.guided = True
    flow_map.time_distribution, flow_map.logit_normal_mean = "logit_normal", -0.4
    flow_map.unequal_share = 0.5
    train = flow_map.train
    train.epochs = 640
    train.batch_size = 1024
    train.optimizer.learning_rate = 1e-4
    train.optimizer.warmup_epochs = 10
    train.optimizer.warmup_from_zero = True

    config.sampling.num_steps = 0  # there is no velocity network
    config.sampling.guidance_scale = 7.5
    config.sampling.guidance_interval = (0.4, 0.65)
    config.mesh.fsdp = 8
    return config
