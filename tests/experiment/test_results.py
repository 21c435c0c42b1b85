"""The numbers of a finished run: what they are, what is refused at start, and one writer among several processes."""

import json
import socket

import numpy as np
import pytest
import runs
from skimage.metrics import peak_signal_noise_ratio

from configs import digits
from rae_jax.data.sources import ArraySource, open_source
from rae_jax.experiment.results import check_results
from rae_jax.sampling.samples import write_samples


def source(count, classes=3, size=32):
    images, names = np.zeros((1, size, size, 3), np.uint8), [str(i) for i in range(classes)]
    return ArraySource(np.broadcast_to(images, (count, size, size, 3)), np.zeros(count, np.int32), names)


def asked(**evaluation):
    config = digits.get_config("tiny")
    config.evaluation.update(dict.fromkeys(config.evaluation, False) | evaluation)
    return config


def test_what_the_images_can_give_is_not_refused():
    everything = dict.fromkeys(digits.get_config("tiny").evaluation, True)
    check_results(asked(**everything), {"train": source(100), "test": source(17)})
    check_results(asked(reconstruction=True), {"train": source(1, classes=0), "test": source(1, classes=0)})


@pytest.mark.parametrize(
    ("wanted", "train", "test", "text"),
    [
        ("frechet", source(100), source(16), r"evaluation\.frechet on 16 held-out images: fd_encoder over 16 features"),
        ("frechet", source(1), source(20), r"at least 2 images; got 1; or set config\.evaluation\.frechet=False"),
        (
            "linear_probe",
            source(9, classes=0),
            source(9),
            r"evaluation\.linear_probe tells classes apart, .* have none",
        ),
        ("judge", source(9, classes=1), source(9), r"evaluation\.judge tells classes apart, but the images have 1"),
        ("judge", source(1_300_000, size=32), source(9), r"evaluation\.judge holds 1,300,000 x 3,072 numbers .* GiB"),
        ("linear_probe", source(10**8), source(9), r"evaluation\.linear_probe holds 100,000,009 x 16 numbers .* GiB"),
    ],
)
def test_what_they_cannot_give_is_refused_at_start(wanted, train, test, text):
    with pytest.raises(ValueError, match=text):
        check_results(asked(**{wanted: True}), {"train": train, "test": test})


def test_one_sample_is_refused_where_a_distance_of_samples_is_asked_for():
    config = asked(frechet=True)
    config.sampling.num_samples = 1
    with pytest.raises(ValueError, match="fd_encoder needs a covariance, and so at least 2 images; got 1"):
        check_results(config, {"train": source(100), "test": source(20)})


def evaluated(workdir, *options, processes=1, **keywords):
    """What is found of an untrained run whose samples are noise, its reconstructions, and what each process printed."""
    samples = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    write_samples(workdir / "samples.npz", samples, labels=np.arange(40) % 10)
    command = ["--mode=evaluate", "--config.stages=()", *options]
    command += [f"--config.{name}.weights=random" for name in ("encoder", "decoder")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    if processes > 1:
        command += ["--distributed", f"--coordinator_address={address}", f"--num_processes={processes}"]
    several = [[f"--process_id={i}"] if processes > 1 else [] for i in range(processes)]
    started = [runs.start(workdir, *command, *own, **keywords) for own in several]
    outputs = [process.communicate(timeout=600)[0] for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    with np.load(workdir / "reconstructions.npz") as stored:
        return json.loads((workdir / "summary.json").read_text())["results"], dict(stored), outputs


@pytest.mark.slow
def test_two_processes_with_eight_devices_each_find_what_one_device_finds_and_one_of_them_writes(tmp_path):
    one, images, _ = evaluated(tmp_path / "one", "--config.sampling.batch_size=359")
    options = ("--config.sampling.batch_size=200", "--config.data.num_workers=1")
    both, same_images, (first, second) = evaluated(tmp_path / "both", *options, devices=8, processes=2)
    assert both.keys() == one.keys() == {
        "psnr", "ssim", "rfd_encoder_359", "linear_probe_accuracy", "fd_encoder_train_1438", "fd_encoder_40",
        "judge_accuracy", "label_agreement",
    }  # fmt: skip
    assert both == pytest.approx(one, rel=1e-3)
    for name in ("originals", "reconstructions"):
        assert np.abs(images[name].astype(int) - same_images[name]).max() <= 1
    np.testing.assert_array_equal(images["originals"], open_source("digits", "test").images)
    pairs = list(zip(images["originals"], images["reconstructions"], strict=True))
    assert one["psnr"] == pytest.approx(np.mean([peak_signal_noise_ratio(a, b) for a, b in pairs]), rel=1e-4)
    assert "judge accuracy" in first and "judge accuracy" not in second
