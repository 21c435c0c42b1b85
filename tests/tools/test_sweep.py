"""Sweeps on a tiny run: every combination is sampled and judged once, and the best is told."""

import argparse
import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from rae_jax.components.catalogue import component
from rae_jax.experiment.configuration import resolved
from rae_jax.experiment.stages import Stages, open_sources
from rae_jax.experiment.workdir import remember
from rae_jax.interop.weights import save_weights
from rae_jax.sampling.samples import read_samples
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog
from tools import evaluate, sweep


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A flow of two steps with a second average, beside an untrained autoencoder: its config and working directory."""
    workdir = tmp_path_factory.mktemp("sweep") / "run"
    workdir.mkdir()
    config = digits.get_config("tiny")
    rng = np.random.default_rng(0)
    for name in ("encoder", "decoder", "flow"):  # at its start a flow would heed no class
        shapes = component(config, name).structure()
        params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
        save_weights(workdir.parent / name, params, {"component": name})
        config[name].weights = str(workdir.parent / name)
    config.stages, config.stats.weights = ("flow",), "identity"
    config.flow.train.update(steps=2, batch_size=4, checkpoint_every=2, more_ema_decays=(0.0,))
    config.flow.train.optimizer.update(learning_rate=0.05, warmup_steps=0)
    config.sampling.update(num_samples=20, num_steps=2, batch_size=20)
    config = resolved(config, workdir)
    plain, _ = remember(config, workdir, file="test.py", write=True)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with sharding.use(mesh):
        stages = Stages(config, plain, open_sources(config), workdir, mesh, RunLog(workdir, active=False))
        stages._picture_taker = lambda *_: lambda *_: None
        stages.train()
    np.savez(workdir / "reference.npz", arr_0=rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    return config, workdir


def judged_by(workdir, metrics="fd_encoder"):
    return argparse.Namespace(metrics=metrics, reference=workdir / "reference.npz", inception=None)


def test_points_are_all_combinations():
    axes = sweep.axes_of(["ema_decay=0.9,0", "guidance_interval=0-1,0.2-0.8,0-1"])
    points = [(0.9, (0.0, 1.0)), (0.9, (0.2, 0.8)), (0.0, (0.0, 1.0)), (0.0, (0.2, 0.8))]
    assert [tuple(point.values()) for point in sweep.points_of(axes)] == points


def test_every_point_is_made_once_with_a_table_a_plot_and_the_best(run, tmp_path, monkeypatch, capsys):
    config, workdir = run
    axes = sweep.axes_of(["ema_decay=0.9,0", "guidance_scale=4"])
    seen = []

    def judged(options):
        """In place of the numbers; the first time it is killed at the second point, whose samples are there."""
        seen.append((options.samples.parent.name, read_samples(options.samples).images))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return {"fd_encoder_20": float(seen[-1][1].std())}

    monkeypatch.setattr(evaluate, "evaluate", judged)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(config, workdir, axes, judged_by(workdir), tmp_path)
    names = [f"ema_decay={decay},guidance_scale=4" for decay in ("0.9", "0")]
    made = (tmp_path / names[1] / "samples.json").stat().st_mtime_ns
    assert list(json.loads((tmp_path / "sweep.json").read_text())) == names[:1]
    rows = sweep.sweep(config, workdir, axes, judged_by(workdir), tmp_path)
    assert [name for name, _ in seen] == [names[0], names[1], names[1]]  # what was finished is not looked at again
    assert made == (tmp_path / names[1] / "samples.json").stat().st_mtime_ns  # nor were samples made again
    assert not list(tmp_path.glob("*/samples.npz"))
    assert [tuple(row[field] for field in axes) for row in rows] == [(0.9, 4), (0.0, 4)]
    distances = [row["fd_encoder_20"] for row in rows]
    assert distances == [seen[0][1].std(), seen[1][1].std()] and len(set(distances)) == 2
    best = names[int(np.argmin(distances))]
    output = capsys.readouterr().out
    assert f"best fd_encoder_20: {min(distances):.4f}, {best}" in output.replace("\n", " ")
    assert output.count("already there") == 1
    with (tmp_path / "sweep.csv").open() as file:
        assert [float(row["fd_encoder_20"]) for row in csv.DictReader(file)] == pytest.approx(distances)
    assert Image.open(tmp_path / "sweep.png").size[0] > 300


def test_intervals_are_swept_and_a_points_samples_say_how_they_were_made(run, tmp_path):
    config, workdir = run
    axes = sweep.axes_of(["guidance_interval=0-1,0.4-0.6"])
    guided = config.copy_and_resolve_references()
    guided.sampling.guidance_scale = 3.0
    rows = sweep.sweep(guided, workdir, axes, judged_by(workdir), tmp_path, keep_samples=True)
    assert [row["guidance_interval"] for row in rows] == [(0.0, 1.0), (0.4, 0.6)]
    assert rows[0]["fd_encoder_20"] != rows[1]["fd_encoder_20"]
    one, other = (read_samples(tmp_path / f"guidance_interval={name}" / "samples.npz") for name in ("0-1", "0.4-0.6"))
    assert (one.images != other.images).any() and (one.labels == other.labels).all()
    told = json.loads((tmp_path / "guidance_interval=0.4-0.6" / "samples.json").read_text())
    assert told["sampling"]["guidance_interval"] == [0.4, 0.6] and told["sampling"]["guidance_scale"] == 3.0


@pytest.mark.parametrize(
    ("over", "metrics", "text"),
    [
        (["shift=1,2"], "fd_encoder", "'shift' is not one of ema_decay, guidance_scale"),
        (["num_steps=1", "num_steps=2"], "fd_encoder", "once each"),
        (["num_steps=few"], "fd_encoder", "'few' are no values of num_steps"),
        (["guidance_interval=0"], "fd_encoder", "such as 0-1,0.2-0.8"),
        (["ema_decay=0.7"], "fd_encoder", "holds no average with decay 0.7, but 0.9 and 0.0"),
        (["guidance_interval=1-0"], "fd_encoder", "'1-0' are no values of guidance_interval"),
        (["num_steps=2,0"], "fd_encoder", "num_steps=0: no velocity network to sample"),
        (["num_steps=2"], "", "--metrics=NAME,NAME is missing"),
        (["num_steps=2"], "psnr", "not among those of samples, fid"),
        (["num_steps=2"], "fid", "fid need --inception=FILE"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_sampled(over, metrics, text, run, tmp_path):
    config, workdir = run
    with pytest.raises(ValueError) as refused:
        sweep.sweep(config, workdir, sweep.axes_of(over), judged_by(workdir, metrics), tmp_path)
    assert text in str(refused.value)
    assert not list(tmp_path.glob("*/samples*"))


def test_too_few_samples_and_no_reference_are_refused(run, tmp_path):
    config, workdir = run
    few, axes = config.copy_and_resolve_references(), sweep.axes_of(["num_steps=2"])
    few.sampling.num_samples = 16
    with pytest.raises(ValueError, match=r"sampling\.num_samples: fd_encoder over 16 features"):
        sweep.sweep(few, workdir, axes, judged_by(workdir), tmp_path)
    nothing = argparse.Namespace(metrics="fd_encoder", reference=None, inception=None)
    with pytest.raises(ValueError, match="fd_encoder need --reference"):
        sweep.sweep(config, workdir, axes, nothing, tmp_path)
