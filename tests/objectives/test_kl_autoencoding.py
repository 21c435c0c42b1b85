"""The KL-VAE's loss, written out in NumPy from the posterior's moments."""

import jax
import numpy as np
import pytest
from losses import images_of, loss_of
from random_params import random_params

from configs import architectures, digits_rac
from rae_jax.models.kl_vae import KLVAE
from rae_jax.objectives import kl_autoencoding


@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
def test_the_loss_is_the_absolute_error_of_a_decoded_sample_plus_the_weighted_divergence(kl_weight, monkeypatch):
    config = digits_rac.get_config("tiny")
    config.teacher.model = architectures.kl_vae(
        channels=(4, 4), latent_channels=2, blocks_per_level=1, num_groups=2, middle_attention=False
    )
    config.teacher.kl_weight = kl_weight
    model, batch, key = KLVAE(**config.teacher.model.to_dict()), images_of(2, 8), jax.random.key(3)
    images = batch["image"] / np.float32(255)
    params = random_params(model, images, std=0.3)
    loss, metrics = loss_of(kl_autoencoding, config, "teacher", monkeypatch)(params, {}, batch, key)

    encode, decode = (
        jax.jit(lambda x, m=m: model.apply({"params": params}, x, method=m)) for m in ("encode", "decode")
    )
    posterior = encode(images)
    mean, logvar = np.asarray(posterior.mean, np.float64), np.asarray(posterior.logvar, np.float64)
    drawn = mean + np.exp(logvar / 2) * np.asarray(jax.random.normal(key, mean.shape))
    decoded = np.asarray(decode(drawn.astype(np.float32)))
    error, divergence = np.abs(decoded - images).mean(), (mean**2 + np.exp(logvar) - 1 - logvar).mean()
    assert divergence > 0.01 and error > 0.01
    np.testing.assert_allclose(metrics["reconstruction"], error, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], divergence, rtol=1e-5)
    np.testing.assert_allclose(loss, error + kl_weight * divergence, rtol=1e-5)
