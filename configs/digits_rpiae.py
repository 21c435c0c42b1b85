"""RPiAE on a laptop: the digits experiment with an encoder that learns to reconstruct, and a narrow latent.

    python -m rae_jax.main --config=configs/digits_rpiae.py

The encoder of `configs/digits.py` is pretrained, then trained on together with a decoder under pivot regularisation
(stage I), its 64 channels are compressed to 16 by the variational bridge (stage II), the decoder is specialised for
what the bridge restores (stage III), and the flow is trained in the bridge's latent space. 1,000 digits are sampled and
judged as in `configs/digits.py`; `reconstructions.npz` has held-out digits through the whole autoencoder.
"""

from ml_collections import ConfigDict

from configs import digits, released, variants


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `configs/digits_rpiae.py:tiny` takes seconds, for tests: nothing is learnt."""
    words = variants.words_of(variant, ("tiny",), file="configs/digits_rpiae.py")
    config = digits.get_config(variant)
    config.stages = ("encoder", "feature_stats", "pivot", "bridge", "specialisation", "stats", "flow")
    use_rpiae(config, tiny="tiny" in words)
    config.flow.shift_base = 64  # no shift, as for the encoder's tokens
    return config


def use_rpiae(config: ConfigDict, *, tiny: bool) -> None:
    """Makes the latent space of a laptop's experiment RPiAE's: what its three stages train, and for how long."""
    released.use_bridge(config, latent_channels=16, depth=2)
    config.feature_stats.train = config.stats.train

    config.pivot.noise_tau = config.decoder.noise_tau
    config.pivot.pivot_balance_layer = "kernel"  # the small encoder has no layer scales
    config.pivot.pivot_fixed_steps = 100
    digits.stage(config.pivot.train, steps=1500, batch_size=64, learning_rate=1e-3, ema_decay=0.995)

    config.bridge.noise_tau = 0.2
    digits.stage(config.bridge.train, steps=1500, batch_size=64, learning_rate=2e-3, ema_decay=0.995)
    digits.stage(config.specialisation.train, steps=1000, batch_size=64, learning_rate=1e-3, ema_decay=0.995)

    if tiny:
        released.use_bridge(config, latent_channels=4, depth=1)
        for name in ("pivot", "bridge", "specialisation"):
            digits.shorten(config[name].train)
        config.specialisation.train.optimizer.shape = "constant"
