"""The streaming evaluator against NumPy and SciPy: any batch size, any number of devices and processes."""

import itertools
import json
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import known_evaluation
import numpy as np
import pytest
import runs
import scipy.linalg
from known_evaluation import drawn, evaluated

from rae_jax.data.digits import ArraySource
from rae_jax.data.transforms import transform
from rae_jax.evaluation import metrics
from rae_jax.evaluation.evaluator import Evaluator, Needs, Summary, image_batches, source_batches
from rae_jax.evaluation.fdr import CONSTANTS
from rae_jax.evaluation.frechet import Moments, frechet_distance
from rae_jax.evaluation.image_sets import images_of
from rae_jax.evaluation.metrics import (
    METRICS,
    PIXELS,
    against,
    check_classes,
    check_counts,
    check_memory,
    computed,
    lpips_name,
    measured,
    named,
    needed,
)  # fmt: skip
from rae_jax.training import sharding

COUNT = 359


def by_numpy(count):
    skimage = pytest.importorskip("skimage.metrics")
    images, matrix = drawn(count)
    halves = images // 2
    a, b = ((x.reshape(count, -1) / 255.0) @ matrix.astype(np.float64) for x in (halves, images))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    pairs = list(zip(images, halves, strict=True))
    return {
        "psnr": np.mean([skimage.peak_signal_noise_ratio(x, y) for x, y in pairs]),
        f"rfd_encoder_{count}": np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root),
    }


@pytest.mark.parametrize("batch_size", [1, 7, 359, 360])
def test_the_metrics_are_numpys_whatever_the_batch_size(batch_size):
    seen = []
    found = evaluated(jax.devices()[:1], COUNT, batch_size, seen)
    assert seen == list(range(COUNT))
    for name, value in by_numpy(COUNT).items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


def in_processes(processes, devices, runs_of):
    """What each of `processes`, which share `devices`, prints of `known_evaluation`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = runs.environment(devices // processes) | {"PYTHONPATH": str(runs.ROOT)}
    command = [sys.executable, known_evaluation.__file__, address, str(processes)]
    started = [
        subprocess.Popen([*command, str(index), json.dumps(runs_of)], text=True, env=environment, stdout=-1, stderr=-1)
        for index in range(processes)
    ]
    ended = [process.communicate(timeout=300) for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(error for _, error in ended)
    return [json.loads(output.splitlines()[-1]) for output, _ in ended]


def test_sixteen_devices_find_what_one_finds_also_where_they_do_not_divide_the_images():
    sizes = [(COUNT, size) for size in (1, 7, 359, 360)] + [(200, 64), (200, 200)]
    (found,) = in_processes(1, 16, sizes)
    assert len(found) == 6
    alone = {count: evaluated(jax.devices()[:1], count, 50) for count in (COUNT, 200)}
    for (count, _), (devices, results, _, _) in zip(sizes, found, strict=True):
        assert devices == 16 and results == pytest.approx(alone[count], rel=1e-5)


def test_each_of_two_processes_reads_its_share_both_know_the_numbers_and_one_writes():
    (one,), (other,) = in_processes(2, 4, [(90, 50)])
    (_, first, read_by_first, seen), (_, second, read_by_second, unseen) = one, other
    assert first == second == pytest.approx(evaluated(jax.devices()[:1], 90, 90), rel=1e-5)
    assert set(read_by_first) | set(read_by_second) == set(range(90))
    assert len(set(read_by_first) & set(read_by_second)) <= 1  # the last image, which fills up the last batch
    assert seen == list(range(90)) and unseen == []


def set_of(count, seed=0):
    return images_of(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), "drawn")


def test_images_of_a_set_are_all_seen_once_and_rows_are_kept_in_their_order():
    mesh, images = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}), set_of(23)
    needs = Needs(rows=frozenset(["pixels"]), means=frozenset(["brightness", "on_host"]))

    def measure(params, batch):
        x = batch["judged"].astype(jnp.float32)
        return {"judged": {"pixels": x[:, 0, 0], "brightness": x.mean((1, 2, 3)), "whole": batch["judged"]}}

    def on_host(rows):
        return {"judged": {"on_host": rows["judged"]["whole"].max((1, 2, 3)).astype(np.float64)}}

    batches = image_batches({"judged": images}, mesh, batch_size=5)
    found = Evaluator(mesh, measure, {"judged": needs})(None, batches, on_host)["judged"]
    (whole,) = images.batches(23)
    np.testing.assert_array_equal(found.rows["pixels"], whole[:, 0, 0])
    assert found.count == 23 and found.rows.keys() == {"pixels"}
    assert found.means["brightness"] == pytest.approx(whole.mean(), rel=1e-6)
    assert found.means["on_host"] == pytest.approx(whole.max((1, 2, 3)).mean(), rel=1e-12)


def test_images_may_be_generated_from_what_a_batch_holds():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    source = ArraySource(np.zeros((11, 8, 8, 3), np.uint8), np.arange(11, dtype=np.int32), [str(i) for i in range(11)])

    def measure(params, batch):
        made = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (3,)))(batch["index"])
        return {"judged": {"made": made + params}}

    run = Evaluator(mesh, measure, {"judged": Needs(rows=frozenset(["made"]))})
    one, other = (
        run(2.0, source_batches(source, mesh, batch_size=size, transform=transform("none", 8), count=9))["judged"]
        for size in (9, 4)
    )
    assert one.count == other.count == 9
    np.testing.assert_array_equal(one.rows["made"], other.rows["made"])


def test_an_evaluator_that_is_called_again_is_not_compiled_again():
    mesh, traced = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}), []

    def measure(params, batch):
        traced.append(1)
        return {"judged": {"x": batch["judged"].mean((1, 2, 3)) * params}}

    run = Evaluator(mesh, measure, {"judged": Needs(means=frozenset(["x"]))})
    found = [run(float(scale), image_batches({"judged": set_of(10)}, mesh, batch_size=4)) for scale in (1, 2)]
    assert len(traced) == 1
    assert found[1]["judged"].means["x"] == pytest.approx(2 * found[0]["judged"].means["x"])


def test_no_more_than_two_batches_are_under_way_at_a_time():
    mesh, alive = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}), []
    given = itertools.count()

    def batches():
        for batch in image_batches({"judged": set_of(40)}, mesh, batch_size=4):
            alive.append(next(given) - len(taken))
            yield batch

    taken = []
    measure = lambda params, batch: {"judged": {"x": batch["judged"].mean((1, 2, 3))}}  # noqa: E731
    Evaluator(mesh, measure, {"judged": Needs()})(None, batches(), lambda rows: taken.append(len(rows["judged"]["x"])))
    assert sum(taken) == 40 and max(alive) <= 2


def test_features_that_are_not_finite_and_a_single_image_with_a_covariance_are_refused():
    mesh, needs = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}), {"judged": Needs(moments=frozenset(["x"]))}

    def measure(params, batch):
        return {"judged": {"x": batch["judged"].astype(jnp.float32)[:, 0, 0] * params}}

    run = Evaluator(mesh, measure, needs)
    with pytest.raises(ValueError, match="NaN or infinity"):
        run(float("nan"), image_batches({"judged": set_of(6)}, mesh, batch_size=4))
    with pytest.raises(ValueError, match="at least 2 samples"):
        run(1.0, image_batches({"judged": set_of(1)}, mesh, batch_size=4))
    with pytest.raises(ValueError, match="no images"):
        run(1.0, [])


def test_what_cannot_be_computed_is_refused_before_anything_is():
    distance, sizes = [METRICS["fd_encoder"]], {"encoder.mean_token": 16}
    check_counts(distance, sizes, judged=2, reference=17, where="here")
    with pytest.raises(ValueError, match="here: fd_encoder over 16 features needs more than 16 samples"):
        check_counts(distance, sizes, judged=2, reference=16, where="here")
    with pytest.raises(ValueError, match="here: fd_encoder needs a covariance, and so at least 2 images; got 1"):
        check_counts(distance, sizes, judged=1, reference=17, where="here")
    check_counts([METRICS["psnr"]], {}, judged=1, reference=1, where="here")
    check_memory("evaluation.judge", 50_000, 3072, "set it to False")
    with pytest.raises(ValueError, match=r"judge holds 1,281,167 x 196,608 numbers .* GiB .*set it to False"):
        check_memory("evaluation.judge", 1_281_167, 256 * 256 * 3, "set it to False")
    check_classes("evaluation.judge", 10)
    with pytest.raises(ValueError, match=r"evaluation\.judge tells classes apart, but the images have none"):
        check_classes("evaluation.judge", 0)


def test_every_metric_needs_something_that_its_record_names_and_tells_what_is_better():
    for name, metric in METRICS.items():
        assert metric.name == name and metric.better in ("higher", "lower")
        assert metric.values or metric.moments or metric.rows
    assert PIXELS.keys() | {lpips_name("alexnet"), lpips_name("vgg16")} <= METRICS.keys()


def test_the_documents_list_every_metric_and_no_other():
    rows = re.findall(r"^\| (`.*?) \|", (runs.ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == METRICS.keys()
    table = metrics.__doc__.partition("\nname ")[2].partition("\n\n")[0]
    first_column = " ".join(line[:30] for line in table.splitlines()[1:])
    assert set(re.findall(r"\w+", first_column)) == METRICS.keys()


def test_only_what_is_needed_is_measured_of_each_set():
    needs = needed([METRICS["is"], METRICS["fid"]])
    images = {"judged": jnp.zeros((2, 8, 8, 3), jnp.uint8), "reference": jnp.zeros((2, 8, 8, 3), jnp.uint8)}

    def inception(params, images):
        return {name: jnp.zeros((len(images), 3)) for name in ("pool", "spatial", "logits")}

    found = measured(None, images, needs, features={"inception": inception}, pairs=PIXELS)
    assert {name: set(values) for name, values in found.items()} == {
        "judged": {"inception.pool", "inception.logits"},
        "reference": {"inception.pool"},
    }
    assert computed([], None, None) == {}


def test_a_number_that_depends_on_how_many_images_are_judged_says_so_in_its_name():
    biased = {name for name, metric in METRICS.items() if metric.biased}
    assert biased == {
        "fid", "sfid", "rfid", "is", "precision", "recall", "fd_encoder", "rfd_encoder", "precision_encoder",
        "recall_encoder", "fd_latent", "fdr6", "class_diversity",
        *(f"{kind}_{quantity.partition('.')[0]}" for kind in ("fdr", "mind") for quantity in CONSTANTS),
    }  # fmt: skip
    assert named(METRICS["fid"], 5000) == "fid_5000" and named(METRICS["fid"], 50_000) == "fid"
    assert named(METRICS["fd_encoder"], 1000, "_2step") == "fd_encoder_2step_1000"
    assert named(METRICS["psnr"], 5000) == "psnr"
    logits = np.random.default_rng(0).normal(size=(70, 5))
    (name,) = computed([METRICS["is"]], Summary(count=70, rows={"inception.logits": logits}), Summary())
    assert name == "is_70"


def test_a_reference_that_is_stored_needs_no_images():
    """And the distance is to it, whatever else is given."""
    rng = np.random.default_rng(0)
    a, b, c = (Moments.of(rng.normal(i, 1, (30, 4))).gaussian() for i in range(3))
    metric = against(METRICS["fid"], Summary(gaussians={"inception.pool": b}))
    assert needed([metric]) == {"judged": Needs(moments=frozenset({"inception.pool"})), "reference": Needs()}
    found = computed([metric], Summary(30, gaussians={"inception.pool": a}), Summary(gaussians={"inception.pool": c}))
    assert found == {"fid_30": pytest.approx(frechet_distance(a, b))}
    check_counts([metric], {"inception.pool": 4}, judged=2, reference=0, where="here")
    with pytest.raises(ValueError, match="at least 2 images"):
        check_counts([metric], {"inception.pool": 4}, judged=1, reference=0, where="here")
