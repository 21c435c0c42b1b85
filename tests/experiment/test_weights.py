"""Weights that are no file: random ones, and statistics that change nothing."""

import json

import jax
import numpy as np
import pytest

from configs import digits
from rae_jax.experiment.generation import Generation
from rae_jax.experiment.weights import Weights
from rae_jax.sampling.samples import read_samples
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog


@pytest.fixture
def configured():
    config = digits.get_config("tiny")
    config.flow.weights = config.decoder.weights = "random"
    config.stages, config.stats.weights = (), "identity"
    config.sampling.num_samples, config.sampling.num_steps = 4, 1
    return config


def test_a_run_samples_with_them_to_the_end(configured, tmp_path):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    log = RunLog(tmp_path, active=False)
    weights = Weights(configured, json.loads(configured.to_json_best_effort()), tmp_path, mesh, log.warn)
    assert weights.identity("flow") == "random" and weights.identity("stats") == "identity"
    with sharding.use(mesh):
        Generation(configured, weights, mesh, tmp_path, log).write_samples()
    samples = read_samples(tmp_path / "samples.npz")
    assert samples.images.shape == (4, 32, 32, 3) and sorted(samples.labels) == [0, 1, 2, 3]
    assert not list(tmp_path.glob("*.partial.*"))


def test_what_is_missing_for_samples_is_said_at_once(configured, tmp_path):
    configured.decoder.weights = ""
    weights = Weights(configured, {}, tmp_path, None, print)
    generation = Generation(configured, weights, None, tmp_path, RunLog(tmp_path, active=False))
    assert not generation.possible
    with pytest.raises(
        ValueError, match="sampling needs trained weights of 'flow' or a flow map and 'stats' and 'decoder'"
    ):
        generation.write_samples()
    assert not np.any([path.suffix == ".npz" for path in tmp_path.iterdir()])


def test_weights_can_be_what_a_stage_of_the_same_run_leaves(configured, tmp_path):
    configured.guide.weights = "{workdir}/flow/checkpoints/20"
    weights = Weights(configured, {}, tmp_path, None, print)
    assert weights.place("guide") == str(tmp_path / "flow" / "checkpoints" / "20")
