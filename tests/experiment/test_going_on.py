"""A run's checkpoints as weights, and weights given to what a stage trains."""

import contextlib
import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits, digits_rpiae
from rae_jax.components.catalogue import component, given_to
from rae_jax.experiment.configuration import resolved
from rae_jax.experiment.stages import Stages, open_sources
from rae_jax.experiment.workdir import progress, remember
from rae_jax.interop.checkpoint_files import read_tensors
from rae_jax.objectives.catalogue import objective_of
from rae_jax.training import sharding
from rae_jax.training.checkpoint_weights import find
from rae_jax.training.progress import RunLog
from tools.convert import export_checkpoint


def configured(steps: int = 6, **train) -> ConfigDict:
    """A tiny encoder, the stage that needs nothing before it."""
    config = digits.get_config("tiny")
    config.stages = ("encoder",)
    config.encoder.train.update(dict(steps=steps, batch_size=4, log_every=100, checkpoint_every=2) | train)
    config.encoder.train.optimizer.shape = "constant"
    return config


@functools.cache
def sources():
    return open_sources(configured())


@contextlib.contextmanager
def opened(config, workdir):
    """What `open_run` does, without its checks, which trace everything, and without pictures."""
    config, log = resolved(config, workdir), RunLog(workdir, active=True)
    plain, lines = remember(config, workdir, file="test.py", write=True)
    for line in lines:
        log.say(line)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with sharding.use(mesh):
        stages = Stages(config, plain, sources(), workdir, mesh, log)
        stages._picture_taker = lambda *_: lambda *_: None
        yield stages


def train(config, workdir):
    with opened(config, workdir) as stages:
        stages.train()
        return stages.weights.load(component(config, "encoder"))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of 6 steps with three averages, of which the checkpoints of all even steps are kept."""
    workdir = tmp_path_factory.mktemp("first") / "run"
    config = configured(more_ema_decays=(0.5, 0.0), keep_every_steps=2, keep_checkpoints=1)
    return workdir, config, train(config, workdir)


def same(one, other) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def loaded(place):
    return find(place).read("encoder")


def test_checkpoints_are_weights_by_their_path_and_the_newest_is_what_the_stage_leaves(first):
    workdir, config, left = first
    folder = workdir / "encoder" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4", "6"]
    assert same(component(config, "encoder").load(folder), left) and same(loaded(folder / "6"), left)
    assert not same(loaded(folder / "4"), left)


def test_every_average_has_its_decay(first):
    folder = first[0] / "encoder" / "checkpoints"
    used, same_decay, half, none = (loaded(f"{folder}/6{which}") for which in ("", "@0.9", "@0.5", "@0"))
    assert same(used, same_decay) and not same(used, half) and not same(half, none)
    with pytest.raises(ValueError, match=r"holds no average with decay 0.7, but 0.9 and 0.5 and 0.0"):
        loaded(f"{folder}/6@0.7")
    with pytest.raises(ValueError, match=r"has no best checkpoint: the stage has no train.best_metric"):
        loaded(folder / "best")


def test_a_damaged_checkpoint_is_an_error_that_names_it(first, tmp_path):
    weights = find(first[0] / "encoder" / "checkpoints" / "4")
    sums = json.loads((weights.directory / "checksums" / "metadata").read_text())
    (tmp_path / "checksums").mkdir()
    (tmp_path / "checksums" / "metadata").write_text(json.dumps([one ^ 1 for one in sums]))
    (tmp_path / "state").symlink_to(weights.directory / "state")
    with pytest.raises(ValueError, match=rf"{tmp_path} cannot be read: .* is not what was saved"):
        dataclasses.replace(weights, directory=tmp_path).read("encoder")


def test_a_checkpoint_exports_like_what_the_stage_leaves(first, tmp_path):
    for name, source in {"left": "weights", "checkpoint": "checkpoints/6"}.items():
        export_checkpoint(
            component(first[1], "encoder").kind, first[0] / "encoder" / source, tmp_path / f"{name}.safetensors"
        )
    left, checkpoint = (read_tensors(tmp_path / f"{name}.safetensors") for name in ("left", "checkpoint"))
    assert left.keys() == checkpoint.keys() and all(np.array_equal(left[name], checkpoint[name]) for name in left)


def test_training_goes_on_from_weights_that_are_given_and_its_result_is_used(first, tmp_path, capsys):
    place = f"{first[0]}/encoder/checkpoints/4@0.5"
    config = configured(steps=2)
    config.encoder.weights = place
    config.encoder.train.optimizer.learning_rate = 1e-6
    left, given = train(config, tmp_path / "run"), loaded(place)
    said = capsys.readouterr().out
    assert not same(left, given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), left, given)
    assert f"encoder: goes on from config.encoder.weights='{place}', with a new optimizer" in said
    assert f"step 4 of {first[0]}/encoder/checkpoints, averaged with decay 0.5" in said
    with opened(config, tmp_path / "run") as stages:  # as sampling and evaluation find it
        assert stages.weights.place("encoder") == str(tmp_path / "run" / "encoder" / "weights")
    assert "encoder: the weights that the stage 'encoder' has left; it began with" in capsys.readouterr().out


def test_a_run_may_choose_among_its_own_checkpoints_and_goes_on_as_before(first):
    workdir, config, left = first
    before = (workdir / "config.json").read_text()
    chosen = config.copy_and_resolve_references()
    chosen.encoder.weights = str(workdir / "encoder" / "checkpoints" / "2")
    with opened(chosen, workdir) as stages:
        assert same(stages.weights.load(component(chosen, "encoder")), loaded(chosen.encoder.weights))
        assert "checkpoints/2: average with decay 0.9" in stages.weights.identity("encoder")
    assert (workdir / "config.json").read_text() == before
    assert same(train(config, workdir), left)


def test_weights_of_one_of_several_components_are_where_the_first_stage_that_trains_it_begins():
    config = digits_rpiae.get_config("tiny")
    config.decoder.weights = "given"
    pivot, later = objective_of(config, "pivot"), objective_of(config, "specialisation")
    assert pivot.initial.keys() == {"encoder", "decoder"} and pivot.initial["decoder"].weights == "given"
    begun = pivot.begin({"encoder": 1, "decoder": 2}, {"encoder": 3, "decoder": 4})
    assert begun == {"encoder": 3, "decoder": 4}
    assert later.begin(1, {"decoder": 5}) == 5  # of the stage before it, as its `initial` says
    assert given_to(config, "pivot") == ("decoder",) and given_to(config, "specialisation") == ()


def test_statistics_that_a_stage_measures_cannot_be_given():
    config = digits.get_config("tiny")
    config.stats.weights = "identity"
    with pytest.raises(ValueError, match=r"stats.weights='identity', which the stage 'stats' measures itself"):
        objective_of(config, "stats")


def test_a_run_goes_on_with_another_batch_size_for_longer_and_from_an_older_version(first, tmp_path, capsys):
    workdir, stage = tmp_path / "run", tmp_path / "run" / "encoder"
    shutil.copytree(first[0], workdir)  # after 6 steps, 24 images
    (stage / "finished.json").unlink()
    kept = json.loads((workdir / "config.json").read_text())
    kept["encoder"]["train"]["of_old"] = kept["encoder"]["train"].pop("keep_every_steps")
    (workdir / "config.json").write_text(json.dumps(kept))

    changes = dict(batch_size=8, gradient_accumulation=2, more_ema_decays=(0.5, 0.0), keep_checkpoints=1)
    left = train(configured(steps=0, images=40, **changes), workdir)
    said = capsys.readouterr().out
    assert "changed since the last start: " in said
    for change in ("batch_size from 4 to 8", "gradient_accumulation from 1 to 2", "steps from 6 to 8"):
        assert f"encoder.train.{change}" in said
    assert "not known to the version that began this run: encoder.train.keep_every_steps=0\n" in said
    assert "not known to this version, and left out: encoder.train.of_old=2\n" in said
    assert "encoder: continuing from step 6 of 8, after 24 images" in said
    assert progress(stage) == (8, 40) and same(left, loaded(stage / "checkpoints" / "8"))

    longer = train(configured(steps=0, images=48, **changes), workdir)
    assert "encoder: continuing from step 8 of 9, after 40 images" in capsys.readouterr().out
    assert progress(stage) == (9, 48) and not same(longer, left)
    assert same(train(configured(steps=5, **changes), workdir), longer)  # fewer than it has made
    assert "encoder: already finished" in capsys.readouterr().out

    shutil.rmtree(stage / "checkpoints")
    with pytest.raises(
        ValueError, match=r"encoder has finished 9 steps, and goes on to .*steps=10 from its last check"
    ):
        train(configured(steps=10, **changes), workdir)
    with pytest.raises(ValueError, match=r"encoder\.model\.width: 16 there, 32 now"):
        config = configured(steps=9, **changes)
        config.encoder.model.width = 32
        train(config, workdir)
