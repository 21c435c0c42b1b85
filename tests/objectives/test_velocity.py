"""Flow matching's loss, from NumPy's path and target and the network's own output."""

import jax
import numpy as np
import pytest
from losses import loss_of
from random_params import random_params

from configs import architectures, digits
from rae_jax.models.lightning_dit import LightningDiT
from rae_jax.objectives import velocity


def a_config():
    config = digits.get_config("tiny")
    config.flow.family = "lightning_dit"
    config.flow.model = architectures.lightning_dit(width=8, depth=1, num_heads=2, rope=False)
    config.flow.shift_base = 64  # 16 tokens of 16 channels: a shift of 2
    return config


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_the_loss_is_the_mean_squared_error_of_noise_minus_latent_at_a_point_on_the_line_between_them(
    dropout, monkeypatch
):
    config, rng, key = a_config(), np.random.default_rng(0), jax.random.key(2)
    config.flow.label_dropout = dropout
    model = LightningDiT(grid_size=4, in_channels=16, num_classes=10, **config.flow.model.to_dict())
    batch = {"latent": rng.normal(size=(4, 16, 16)).astype(np.float32), "label": np.arange(4, dtype=np.int32)}
    mean, variance = rng.normal(size=(16, 16)).astype(np.float32), rng.uniform(0.5, 2, (16, 16)).astype(np.float32)
    params = random_params(model, batch["latent"], np.zeros(4), batch["label"], std=0.3)
    stats = {"mean": mean, "variance": variance}
    loss, metrics = loss_of(velocity, config, "flow", monkeypatch)(params, {"stats": stats}, batch, key)

    time_key, noise_key, _ = jax.random.split(key, 3)
    even = 0.999 * np.asarray(jax.random.uniform(time_key, (4,)))
    t = (2 * even / (1 + even)).astype(np.float32)
    eps = np.asarray(jax.random.normal(noise_key, (4, 16, 16)))
    z = (batch["latent"] - mean) / np.sqrt(variance + 1e-5)
    z_t = (1 - t)[:, None, None] * z + t[:, None, None] * eps
    labels = np.full(4, 10) if dropout else batch["label"]
    v = jax.jit(lambda y: model.apply({"params": params}, z_t, t, y))
    expected, of_other_labels = (np.mean((np.asarray(v(y)) - (eps - z)) ** 2) for y in (labels, labels - 1))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose([metrics["latent_mean"], metrics["latent_deviation"]], [z.mean(), z.std()], rtol=1e-4)
    assert abs(of_other_labels / expected - 1) > 1e-3
