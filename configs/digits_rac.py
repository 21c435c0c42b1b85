"""RAC on a laptop: digits at their own 8 x 8 pixels, decoded from a small KL-VAE's latents by a flow in four steps.

    python -m rae_jax.main --config=configs/digits_rac.py

A KL-VAE is trained (L1 + KL) and frozen: the teacher. A rectified coder learns to decode its latents in steps, and to
encode by the same steps reversed. The latents' statistics are measured, a diffusion transformer learns the flow on
them, and 1,000 digits are sampled and decoded by the coder. The encoder of configs/digits.py, at 8 pixels, is there
for the Fréchet distance.
"""

from ml_collections import ConfigDict

from configs import base, digits


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `configs/digits_rac.py:tiny` takes seconds, for tests: nothing is learnt."""
    config = digits.get_config()
    config.stages = ("encoder", "teacher", "coder", "stats", "flow")
    config.autoencoder = "rac"
    config.data.image_size = 8

    config.encoder.input_size = 8
    config.encoder.model.image_size = 8
    config.encoder.model.patch_size = 2

    # 4 x 4 latents of 2 channels: half as many numbers as pixels.
    config.teacher.model = base.kl_vae(
        channels=(16, 32), latent_channels=2, blocks_per_level=1, num_groups=8, middle_attention=False
    )
    digits.stage(config.teacher.train, steps=1500, batch_size=64, learning_rate=2e-3, ema_decay=0.995)

    config.coder.model = base.rectified_coder(
        channels=(16, 32), blocks_per_level=0, num_groups=8, middle_attention=False
    )
    digits.stage(config.coder.train, steps=1000, batch_size=32, learning_rate=1e-3, ema_decay=0.995)

    config.flow.family = "lightning_dit"
    config.flow.model = base.lightning_dit(width=128, depth=6, num_heads=4)
    config.flow.shift_base = 8  # a shift of 2, as in configs/digits.py

    config.evaluation.linear_probe = False
    for name in ("encoder", "teacher", "coder", "stats", "flow"):
        config[name].train.transform = "center_crop"
    if variant == "tiny":
        shrink(config)
    elif variant:
        raise ValueError(f"configs/digits_rac.py has no variant {variant!r}; there is 'tiny'")
    return config


def shrink(config: ConfigDict) -> None:
    """Makes every part small and every stage short."""
    config.encoder.model = base.vision_transformer(image_size=8, patch_size=2, width=16, depth=1, num_heads=2)
    config.encoder.head = ConfigDict(dict(width=16, depth=1, num_heads=2, mlp_dim=32))
    config.teacher.model = base.kl_vae(
        channels=(4, 8), latent_channels=2, blocks_per_level=1, num_groups=4, middle_attention=False
    )
    config.coder.model = base.rectified_coder(channels=(4, 8), blocks_per_level=1, num_groups=4, middle_attention=False)
    config.coder.num_steps = config.sampling.coder_steps = 2
    config.flow.model = base.lightning_dit(width=16, depth=1, num_heads=2)
    for name in ("encoder", "teacher", "coder", "stats", "flow"):
        digits.shorten(config[name].train)
        config[name].train.transform = "center_crop"
    config.stats.train.batch_size = 256
    config.sampling.num_samples = 20
    config.sampling.num_steps = 4
