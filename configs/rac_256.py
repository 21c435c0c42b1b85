"""RAC at 256 pixels on ImageNet: rectified coders of the published KL-VAEs, and SiT generators decoded by them.

    python -m rae_jax.main --config=configs/rac_256.py:coder_0.1x --config.data.path=TFDS_DIR \\
        --config.teacher.weights=DIR_OF_SD_VAE
    python -m rae_jax.main --config=configs/rac_256.py:sit_XL --config.data.path=TFDS_DIR \\
        --config.teacher.weights=DIR --config.coder.weights=DIR --config.encoder.weights=DIR_OF_DINOV2_B

Variants:
  coder_0.1x, coder_0.2x, coder_0.3x, coder_1x   a coder of Stable Diffusion's KL-VAE, f8 and 4 channels (Table 1)
  coder_f16_4, coder_f16_8, coder_f16_16, coder_f16_32   a 0.3x coder of a KL-VAE of 16 x 16 latents with so many
                                                         channels; VA-VAE has 32
  joint_0.1x, ..., joint_1x                      KL-VAE and coder together, both from scratch (Table 4)
  state_0.1x, ..., state_1x                      state reconstruction (Fig. 6, Table 3): the round trip goes through the
                                                 encoded state, not its latent
  sit_B, sit_L, sit_XL                           SiT on the teacher's latents with REPA, decoded by the coder
  tuning_B, tuning_L, tuning_XL                  end-to-end tuning of the coder with such a generator (REPA-E)
  scratch_B, scratch_L, scratch_XL               a generator from scratch on the latents of the tuned coder (give it as
                                                 --config.coder.weights), which also encodes
  sit_XL_0.1x, tuning_B_1x, ...                  the same with a coder of that scale, instead of 0.3x

Generators are sampled as REPA samples: Euler-Maruyama with 250 evaluations, w(t) = 2 t and a last step of 0.04. SiT's
latents are those of the teacher, scaled and not standardised.

Reported by the paper: rFID 0.44 / 0.39 / 0.35 with 0.1x / 0.2x / 0.3x. Nothing of that has been run with this code. The
numbers of steps and the batch sizes are chosen here: the paper's are not known.
"""

from ml_collections import ConfigDict

from configs import architectures, base, released, variants
from rae_jax.models.coder import SCALES
from rae_jax.models.kl_vae import STABLE_DIFFUSION
from rae_jax.models.lightning_dit import SIZES

F16 = {"channels": (128, 128, 256, 256, 512)}  # of the KL-VAEs with 16 pixels a latent
F16_CODER = {"channels": (72, 72, 144, 144, 280), "num_groups": 8}
GENERATORS = ("sit", "tuning", "scratch")
ENDS = tuple(f"_{scale}" for scale in SCALES)


def every_variant() -> list[str]:
    """Every variant's name."""
    coders = [f"{kind}_{scale}" for kind in ("coder", "joint", "state") for scale in SCALES]
    return [
        *coders,
        *(f"coder_f16_{channels}" for channels in (4, 8, 16, 32)),
        *(f"{kind}_{size}{scale}" for kind in GENERATORS for size in ("B", "L", "XL") for scale in ("", *ENDS)),
    ]


def get_config(variant: str = "coder_0.1x") -> ConfigDict:
    if variant not in every_variant():
        raise variants.no_variant("configs/rac_256.py", variant, every_variant())
    kind, _, size = variant.partition("_")
    size, _, scale = size.partition("_") if kind in GENERATORS else (size, "", size)
    config = base.get_config()
    config.dtype = "bfloat16"
    config.autoencoder = "rac"
    if size.startswith("f16"):
        config.teacher.model = architectures.kl_vae(**F16, latent_channels=int(size.rpartition("_")[2]))
        config.coder.model = architectures.rectified_coder(**F16_CODER)
    else:
        config.teacher.model = architectures.kl_vae(**STABLE_DIFFUSION)
        config.coder.model = architectures.rectified_coder(**SCALES[scale or "0.3x"])
    if kind == "state":
        config.coder.round_trip = "state"
    config.coder.recompute = True
    if kind in GENERATORS:
        _generator(config, kind, size)
    else:
        stage = "joint_coder" if kind == "joint" else "coder"
        config.stages = (stage,)
        _train(config[stage].train, epochs=16, learning_rate=3e-4)
    return config


def _generator(config: ConfigDict, kind: str, size: str) -> None:
    released.use_pretrained_encoder(config, "dinov2_b")
    config.flow.family = "lightning_dit"
    config.flow.model = architectures.sit(**SIZES[size])
    config.flow.objective = "aligned_velocity"
    config.flow.shift_base = 4096  # of 32 x 32 x 4 latents: no shift
    config.coder.encodes = kind != "sit"
    if kind == "tuning":
        config.stages = ("tuned_coder",)
        _train(config.tuned_coder.train, steps=400_000, learning_rate=1e-4)
        config.tuned_coder.train.optimizer.beta2 = 0.999
    else:
        config.stages = ("flow",) if kind == "sit" else ("stats", "flow")
        if kind == "sit":
            config.stats.weights = "identity"
        config.flow.model.scan = True
        config.stats.train.batch_size = 256
        _train(config.flow.train, epochs=80, learning_rate=1e-4)
        config.flow.train.optimizer.beta2 = 0.999
    config.sampling.method, config.sampling.num_steps = "euler_maruyama", 250
    config.sampling.diffusion_norm, config.sampling.last_step = 2.0, 0.04


def _train(train: ConfigDict, *, epochs: int = 0, steps: int = 0, learning_rate: float) -> None:
    train.epochs, train.steps = epochs, steps
    train.batch_size = 256
    train.optimizer.learning_rate = learning_rate
