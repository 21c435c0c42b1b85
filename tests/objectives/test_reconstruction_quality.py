"""The evaluation of decoders in training, against the metrics of scikit-image and a decoder that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from whole_autoencoder import autoencoder

from configs import digits
from rae_jax.components.catalogue import component
from rae_jax.models.lpips import NETWORKS
from rae_jax.objectives.reconstruction_quality import reconstruction_evaluation
from rae_jax.training import sharding
from rae_jax.training.state import TrainState

metrics = pytest.importorskip("skimage.metrics")
NETWORKS["two convolutions"] = (("conv", 4, 3, 1, 1), ("tap",), ("pool", 2, 2), ("conv", 8, 3, 1, 1), ("tap",))


def configured():
    config = digits.get_config("tiny")
    config.lpips.network = "two convolutions"
    config.decoder.train.evaluate_every = 1
    config.decoder.train.evaluation_images = 64
    return config


def evaluated(reconstruct):
    """The evaluation of 64 random images under `reconstruct`."""
    config = configured()
    evaluation = reconstruction_evaluation(config, "decoder", lambda state, images: reconstruct(images))
    frozen = {name: sharding.unbox(part.init(jax.random.key(0))) for name, part in evaluation.needs.items()}
    state = TrainState(step=0, params={}, ema_params={}, opt_state={}, frozen=frozen)
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    rows = jax.device_get(jax.jit(evaluation.measure)(state, {"image": jnp.asarray(images)}))
    return images, evaluation, evaluation.summarise(rows)


def test_a_perfect_decoder_has_no_distance():
    _, evaluation, found = evaluated(lambda images: images + 0.1 / 255)  # truncation to 8 bits takes it away again
    assert found.keys() == evaluation.better.keys() == {"psnr", "ssim", "lpips", "frechet_encoder"}
    assert found["psnr"] == 100 and found["ssim"] == pytest.approx(1)
    assert found["lpips"] == pytest.approx(0, abs=1e-9) and found["frechet_encoder"] == pytest.approx(0, abs=1e-8)


def test_the_metrics_are_those_of_the_images_in_8_bits():
    images, _, found = evaluated(lambda images: 1.3073 * images - 0.2011)
    decoded = (np.clip(np.float32(1.3073) * (images / np.float32(255)) - np.float32(0.2011), 0, 1) * 255).astype(
        np.uint8
    )
    expected = np.mean([metrics.peak_signal_noise_ratio(a, b) for a, b in zip(images, decoded, strict=True)])
    assert found["psnr"] == pytest.approx(expected, abs=0.01)
    assert found["lpips"] > 0 and 0 < found["ssim"] < 1
    config = configured()
    encoder = {"encoder": sharding.unbox(component(config, "encoder").init(jax.random.key(0)))}
    tokens = [
        autoencoder(config).apply({"params": encoder}, x / np.float32(255), method="tokens") for x in (images, decoded)
    ]
    a, b = (np.asarray(x, np.float64).mean(axis=1) for x in tokens)
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert found["frechet_encoder"] == pytest.approx(distance, rel=1e-2)


def test_inception_weights_make_it_the_rfid_and_too_few_images_are_refused():
    config = configured()
    config.inception.weights = "inception.pth"
    with pytest.raises(ValueError, match=r"decoder\.train\.evaluation_images: rfid over 2048 features"):
        reconstruction_evaluation(config, "decoder", None)
    config.decoder.train.evaluation_images = 5000
    evaluation = reconstruction_evaluation(config, "decoder", None)
    assert evaluation.better["rfid"] == "lower" and evaluation.needs.keys() == {"lpips", "inception"}
    config.decoder.train.evaluate_every = 0
    assert reconstruction_evaluation(config, "decoder", None) is None
    assert component(config, "inception").module is not None
