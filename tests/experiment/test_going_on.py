"""A run's checkpoints as weights, and weights given to what a stage trains."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base, digits
from rae_jax.components.catalogue import component
from rae_jax.experiment.run import open_run
from rae_jax.interop.checkpoint_files import read_tensors
from rae_jax.training.checkpoint_weights import find
from tools.convert import export_checkpoint


def configured(steps: int = 6, **train) -> ConfigDict:
    """A tiny flow, in the latent space of an untrained autoencoder, and nothing else."""
    config = digits.get_config("tiny")
    config.stages = ("flow",)
    config.encoder.weights = config.decoder.weights = "random"
    config.stats.weights = "identity"
    config.flow.model = base.dit_dh(width=8, depth=1, num_heads=1, head_width=8, head_depth=1, head_num_heads=1)
    config.flow.train.update(dict(steps=steps, batch_size=4, log_every=100, checkpoint_every=2) | train)
    config.flow.train.optimizer.shape = "constant"
    for name in config.evaluation:
        config.evaluation[name] = False
    return config


@contextlib.contextmanager
def opened(config, workdir):
    with open_run(config, "test.py", workdir, keep_programs=False) as stages:
        stages._picture_taker = lambda *_: lambda *_: None  # pictures take longer than all the rest
        yield stages


def train(config, workdir):
    with opened(config, workdir) as stages:
        stages.train()
        return stages.weights.load(component(config, "flow"))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of 6 steps with three averages, of which the checkpoints of all even steps are kept."""
    workdir = tmp_path_factory.mktemp("first") / "run"
    config = configured(more_ema_decays=(0.5, 0.0), keep_every_steps=2, keep_checkpoints=1)
    return workdir, config, train(config, workdir)


def same(one, other) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def loaded(place):
    return find(place).read("flow")


def test_checkpoints_are_weights_by_their_path_and_the_newest_is_what_the_stage_leaves(first):
    workdir, config, left = first
    folder = workdir / "flow" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4", "6"]
    assert same(component(config, "flow").load(folder), left) and same(loaded(folder / "6"), left)
    config = config.copy_and_resolve_references()
    config.guide.model = config.flow.model
    guide = component(config, "guide").load(folder / "4")
    assert same(guide, loaded(folder / "4")) and not same(guide, left)


def test_every_average_has_its_decay(first):
    folder = first[0] / "flow" / "checkpoints"
    used, same_decay, half, none = (loaded(f"{folder}/6{which}") for which in ("", "@0.9", "@0.5", "@0"))
    assert same(used, same_decay) and not same(used, half) and not same(half, none)
    with pytest.raises(ValueError, match=r"holds no average with decay 0.7, but 0.9 and 0.5 and 0.0"):
        loaded(f"{folder}/6@0.7")
    with pytest.raises(ValueError, match=r"has no best checkpoint: the stage has no train.best_metric"):
        loaded(folder / "best")


def test_a_damaged_checkpoint_is_an_error_that_names_it(first, tmp_path):
    weights = find(first[0] / "flow" / "checkpoints" / "4")
    sums = json.loads((weights.directory / "checksums" / "metadata").read_text())
    (tmp_path / "checksums").mkdir()
    (tmp_path / "checksums" / "metadata").write_text(json.dumps([one ^ 1 for one in sums]))
    (tmp_path / "state").symlink_to(weights.directory / "state")
    with pytest.raises(ValueError, match=rf"{tmp_path} cannot be read: .* is not what was saved"):
        dataclasses.replace(weights, directory=tmp_path).read("flow")


def test_a_checkpoint_exports_like_what_the_stage_leaves(first, tmp_path):
    for name, source in {"left": "weights", "checkpoint": "checkpoints/6"}.items():
        export_checkpoint("dit_dh", first[0] / "flow" / source, tmp_path / f"{name}.safetensors")
    left, checkpoint = (read_tensors(tmp_path / f"{name}.safetensors") for name in ("left", "checkpoint"))
    assert left.keys() == checkpoint.keys() and all(np.array_equal(left[name], checkpoint[name]) for name in left)


def test_training_goes_on_from_weights_that_are_given_and_its_result_is_used(first, tmp_path, capsys):
    place = f"{first[0]}/flow/checkpoints/4@0.5"
    config = configured(steps=2)
    config.flow.weights = place
    config.flow.train.optimizer.learning_rate = 1e-6
    left, given = train(config, tmp_path / "run"), loaded(place)
    said = capsys.readouterr().out
    assert not same(left, given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), left, given)
    assert f"flow: goes on from config.flow.weights='{place}', with a new optimizer" in said
    assert f"step 4 of {first[0]}/flow/checkpoints, averaged with decay 0.5" in said
    with opened(config, tmp_path / "run") as stages:  # as sampling and evaluation find it
        assert stages.weights.place("flow") == str(tmp_path / "run" / "flow" / "weights")
    assert "flow: the weights that the stage 'flow' has left; it began with" in capsys.readouterr().out


def test_a_run_may_choose_among_its_own_checkpoints_and_goes_on_as_before(first):
    workdir, config, left = first
    before = (workdir / "config.json").read_text()
    chosen = config.copy_and_resolve_references()
    chosen.flow.weights = str(workdir / "flow" / "checkpoints" / "2")
    with opened(chosen, workdir) as stages:
        assert same(stages.weights.load(component(chosen, "flow")), loaded(chosen.flow.weights))
        assert "checkpoints/2: average with decay 0.9" in stages.weights.identity("flow")
    assert (workdir / "config.json").read_text() == before
    assert same(train(config, workdir), left)


def test_statistics_that_a_stage_measures_cannot_be_given(tmp_path):
    config = configured()
    config.stages = ("stats", "flow")
    with pytest.raises(ValueError, match=r"stats.weights='identity', which the stage 'stats' measures itself"):
        train(config, tmp_path)
