"""The evaluation of stages in training: decoders against scikit-image and SciPy, generators as a user runs them."""

import jax
import numpy as np
import pytest
import runs
import scipy.linalg
import small_inception

from configs import digits
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.data.digits import ArraySource
from rae_jax.data.transforms import transform
from rae_jax.evaluation import metrics
from rae_jax.evaluation.evaluator import Evaluator, source_batches
from rae_jax.evaluation.metrics import JUDGED, REFERENCE, computed, needed
from rae_jax.models.lpips import NETWORKS
from rae_jax.objectives.quality import reconstruction_evaluation, sample_evaluation
from rae_jax.sampling.generator import sample_keys
from rae_jax.training import sharding
from rae_jax.training.state import TrainState

skimage = pytest.importorskip("skimage.metrics")


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    """LPIPS through two convolutions."""
    layers = (("conv", 4, 3, 1, 1), ("tap",), ("pool", 2, 2), ("conv", 8, 3, 1, 1), ("tap",))
    monkeypatch.setitem(NETWORKS, "small", layers)
    monkeypatch.setitem(metrics.METRICS, "lpips_small", metrics.mean_of_pairs("lpips_small", "lower"))


def configured():
    config = digits.get_config("tiny")
    config.lpips.weights = "somewhere"
    config.lpips.network = "small"
    config.decoder.train.evaluate_every = 1
    config.decoder.train.evaluation_images = 64
    return config


def evaluated(reconstruct):
    """64 random images, their evaluation under `reconstruct`, and its numbers."""
    evaluation = reconstruction_evaluation(configured(), "decoder", lambda state, images: reconstruct(images))
    frozen = {name: sharding.unbox(jax.jit(part.init)(jax.random.key(0))) for name, part in evaluation.needs.items()}
    state = TrainState(step=0, params={}, ema_params={}, opt_state={}, frozen=frozen)
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    source = ArraySource(images, np.zeros(64, np.int32), ["one"])
    batches = source_batches(source, mesh, batch_size=24, transform=transform("center_crop", 32))
    found = Evaluator(mesh, evaluation.measure, needed(evaluation.metrics))(state, batches)
    return images, evaluation, computed(evaluation.metrics, found[JUDGED], found[REFERENCE])


def test_a_perfect_decoder_has_no_distance():
    _, evaluation, found = evaluated(lambda images: images + 0.1 / 255)  # truncation to 8 bits takes it away again
    assert evaluation.better.keys() == {"psnr", "ssim", "lpips_small", "rfd_encoder"}
    assert found.keys() == {"psnr", "ssim", "lpips_small", "rfd_encoder_64"}
    assert found["psnr"] == 100 and found["ssim"] == pytest.approx(1)
    assert found["lpips_small"] == pytest.approx(0, abs=1e-9) and found["rfd_encoder_64"] == pytest.approx(0, abs=1e-8)


def test_the_metrics_are_those_of_the_images_in_8_bits():
    images, _, found = evaluated(lambda images: 1.3073 * images - 0.2011)
    decoded = (np.clip(np.float32(1.3073) * (images / np.float32(255)) - np.float32(0.2011), 0, 1) * 255).astype(
        np.uint8
    )
    expected = np.mean([skimage.peak_signal_noise_ratio(a, b) for a, b in zip(images, decoded, strict=True)])
    assert found["psnr"] == pytest.approx(expected, abs=0.01)
    assert found["lpips_small"] > 0 and 0 < found["ssim"] < 1
    config = configured()
    params, tokens = sharding.unbox(jax.jit(encoder(config).init)(jax.random.key(0))), jax.jit(tokens_of(config))
    a, b = (np.asarray(tokens(params, x / np.float32(255)), np.float64).mean(axis=1) for x in (images, decoded))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert found["rfd_encoder_64"] == pytest.approx(distance, rel=1e-2)


def test_inception_weights_make_it_the_rfid_and_too_few_images_are_refused():
    config = configured()
    config.inception.weights = "inception.pth"
    with pytest.raises(ValueError, match=r"decoder\.train\.evaluation_images: rfid over 2048 features"):
        reconstruction_evaluation(config, "decoder", None)
    config.decoder.train.evaluation_images = 5000
    evaluation = reconstruction_evaluation(config, "decoder", None)
    assert evaluation.better["rfid"] == "lower" and evaluation.needs.keys() == {"lpips", "inception"}
    config.lpips.weights = ""
    assert reconstruction_evaluation(config, "decoder", None).better.keys() == {"psnr", "ssim", "rfid"}
    config.decoder.train.evaluate_every = 0
    assert reconstruction_evaluation(config, "decoder", None) is None


@pytest.mark.parametrize("stored", [False, True], ids=["held-out images", "a file of statistics"])
def test_inception_weights_give_a_generators_fid_to(stored, monkeypatch, tmp_path):
    small_inception.install(monkeypatch)
    rng, config = np.random.default_rng(1), configured()
    config.inception.weights = "inception.pth"
    config.flow.train.update(evaluate_every=1, evaluation_images=40)
    if stored:
        reference = rng.normal(size=5), np.cov(rng.normal(size=(5, 30)))
        np.savez(tmp_path / "statistics.npz", mu=reference[0], sigma=reference[1])
        config.inception.reference = str(tmp_path / "statistics.npz")

    def generate(params, frozen, keys, labels):
        return jax.vmap(lambda key: jax.random.uniform(key, (32, 32, 3)))(keys) * (labels[:, None, None, None] / 40)

    evaluation = sample_evaluation(config, "flow", generate)
    assert evaluation.better == {"fd_latent": "lower", "fid": "lower"}
    frozen = {name: sharding.unbox(jax.jit(part.init)(jax.random.key(0))) for name, part in evaluation.needs.items()}
    state = TrainState(step=0, params={}, ema_params={}, opt_state={}, frozen=frozen)
    images, labels = rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8), np.arange(64, dtype=np.int32)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    source = ArraySource(images, labels, [str(i) for i in range(64)])
    batches = source_batches(source, mesh, batch_size=24, transform=transform("center_crop", 32), count=40)
    found = Evaluator(mesh, evaluation.measure, needed(evaluation.metrics))(state, batches)
    results = computed(evaluation.metrics, found[JUDGED], found[REFERENCE])
    assert results.keys() == {"fd_latent_40", "fid_40"}

    drawn = np.asarray(generate(None, None, sample_keys(config.seed, np.arange(40)), labels[:40]))
    of_samples = small_inception.moments(frozen["inception"], (drawn * 255).astype(np.uint8))
    if not stored:
        reference = small_inception.moments(frozen["inception"], images[:40])
    assert results["fid_40"] == pytest.approx(small_inception.distance(of_samples, reference), rel=1e-3)


def test_a_reference_without_statistics_for_fid_is_refused_by_its_field(tmp_path):
    config = configured()
    config.inception.weights = "inception.pth"
    config.flow.train.update(evaluate_every=1, evaluation_images=40)
    with pytest.raises(ValueError, match=r"flow\.train\.evaluation_images: fid over 2048 features"):
        sample_evaluation(config, "flow", None)
    config.inception.reference = str(tmp_path / "images.npz")
    with pytest.raises(ValueError, match=r"config\.inception\.reference: there is no file .*images\.npz"):
        sample_evaluation(config, "flow", None)
    np.savez(config.inception.reference, arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"inception\.reference=.*images\.npz' holds no inception\.pool \(mu, sigma\)"):
        sample_evaluation(config, "flow", None)
    np.savez(config.inception.reference, mu=np.zeros(2048), sigma=np.eye(2048))
    assert sample_evaluation(config, "flow", None).better["fid"] == "lower"  # of as few samples as one likes


@pytest.mark.slow
def test_a_flow_records_the_frechet_distance_of_its_averaged_weights_and_keeps_the_best(tmp_path):
    options = [f"--config.flow.train.{field}" for field in ("evaluate_every=8", "best_metric=fd_latent",
               "keep_checkpoints=1", "checkpoint_every=100", "evaluation_images=300")]  # fmt: skip
    status, output = runs.run(tmp_path, runs.WITHOUT_FLOW_MAP, *options)
    assert status == 0, output
    distances = runs.metrics(tmp_path, "flow", "evaluation/fd_latent_300")
    assert list(distances) == [8, 16, 20] and min(distances.values()) > 0
    assert len(set(distances.values())) == 3
    best = min(distances, key=distances.get)
    kept = {int(path.name) for path in (tmp_path / "flow" / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {best, 20}
    assert "held-out images at step 8: fd latent 300 = " in output
