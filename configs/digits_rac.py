"""RAC on a laptop: digits, decoded from a small KL-VAE's latents by a flow in four steps.

    python -m rae_jax.main --config=configs/digits_rac.py

A KL-VAE is trained (L1 + KL) and frozen: the teacher. A rectified coder learns to decode its latents in steps, and to
encode by the same steps reversed. The latents' statistics are measured, a diffusion transformer learns the flow on
them, and 1,000 digits are sampled and decoded by the coder. The encoder of configs/digits.py is there for the Fréchet
distance.
"""

from ml_collections import ConfigDict

from configs import architectures, digits, variants


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `configs/digits_rac.py:tiny` takes seconds, for tests: nothing is learnt.

    With `joint` KL-VAE and coder are trained together (RAC, Table 4).
    """
    words = variants.words_of(variant, ("tiny",), ("joint",), file="configs/digits_rac.py")
    config = digits.get_config()
    config.stages = ("encoder", *(("joint_coder",) if "joint" in words else ("teacher", "coder")), "stats", "flow")
    config.autoencoder = "rac"
    config.cpu_devices = 2

    # 4 x 4 latents of 4 channels, 8 pixels a latent, as Stable Diffusion's.
    config.teacher.model = architectures.kl_vae(
        channels=(8, 16, 32, 32), latent_channels=4, blocks_per_level=1, num_groups=4, middle_attention=False
    )
    digits.stage(config.teacher.train, steps=1000, batch_size=64, learning_rate=2e-3, ema_decay=0.995)

    # Squares of 4 pixels keep the field's convolutions at 8 x 8 and below: a training step evaluates it 12 times.
    config.coder.model = architectures.rectified_coder(
        channels=(16, 32), patch_size=4, blocks_per_level=0, num_groups=8, middle_attention=False
    )
    for stage in (config.coder, config.joint_coder):
        digits.stage(stage.train, steps=1000, batch_size=32, learning_rate=1e-3, ema_decay=0.995)

    config.flow.family = "lightning_dit"
    config.flow.model = architectures.lightning_dit(width=128, depth=4, num_heads=4)
    config.flow.shift_base = 16  # a shift of 2: more of the times at which the class is decided
    digits.stage(config.flow.train, steps=5000, batch_size=32, learning_rate=2e-3, ema_decay=0.998)

    config.evaluation.linear_probe = False
    if "tiny" in words:
        shrink(config)
    return config


def shrink(config: ConfigDict) -> None:
    """Makes every part small and every stage short."""
    config.cpu_devices = 1  # compiles sooner
    config.encoder.model = architectures.vision_transformer(image_size=32, patch_size=8, width=16, depth=1, num_heads=2)
    config.encoder.head = ConfigDict(dict(width=16, depth=1, num_heads=2, mlp_dim=32))
    config.teacher.model = architectures.kl_vae(
        channels=(4, 4, 4, 8), latent_channels=4, blocks_per_level=1, num_groups=4, middle_attention=False
    )
    config.coder.model = architectures.rectified_coder(
        channels=(4, 8), patch_size=4, blocks_per_level=0, num_groups=4, middle_attention=False
    )
    config.coder.num_steps = config.sampling.coder_steps = 2
    config.flow.model = architectures.lightning_dit(width=16, depth=1, num_heads=2)
    for name in ("encoder", "teacher", "coder", "joint_coder", "stats", "flow"):
        digits.shorten(config[name].train)
    config.stats.train.batch_size = 256
    config.sampling.num_samples = 20
    config.sampling.num_steps = 4
