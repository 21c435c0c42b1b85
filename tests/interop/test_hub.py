"""Weights by their address on the Hub, out of a cache as huggingface_hub keeps it; nobody is asked."""

import sys

import huggingface_hub.constants
import jax
import numpy as np
import pytest

from configs import digits
from rae_jax.components.catalogue import component
from rae_jax.experiment.configuration import resolved
from rae_jax.interop import hub
from rae_jax.interop.weights import save_weights
from rae_jax.training.sharding import unbox

REPOSITORY, COMMIT, OLDER = "someone/some-weights", "a" * 40, "b" * 40


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """The folder of the newest revision in a cache that is all there is."""
    hub.fetched.cache_clear()  # of another cache
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--some-weights"
    for name, commit in {"main": COMMIT, "old": OLDER}.items():
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(commit)
        (repository / "snapshots" / commit / "decoders").mkdir(parents=True)
        (repository / "snapshots" / commit / "decoders" / "model.pt").write_text(name)
    return repository / "snapshots" / COMMIT


def test_an_address_is_a_file_a_folder_or_a_whole_repository(snapshot):
    assert hub.local(f"hf://{REPOSITORY}/decoders/model.pt") == str(snapshot / "decoders" / "model.pt")
    assert hub.local(f"hf://{REPOSITORY}/decoders") == str(snapshot / "decoders")
    assert hub.local(f"hf://{REPOSITORY}") == str(snapshot)
    older = hub.local(f"hf://{REPOSITORY}@old/decoders/model.pt")
    assert older == str(snapshot.parent / OLDER / "decoders" / "model.pt")
    assert hub.local("runs/x") == "runs/x"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            f"hf://{REPOSITORY}/decoders/other.pt",
            r"no decoders/other\.pt in someone/some-weights; .* decoders/model\.pt",
        ),
        ("hf://someone/else/model.pt", "not in the cache, and the Hub cannot be asked"),
        ("hf://someone", "no address on the Hub"),
        (f"hf://{REPOSITORY}@new/decoders", "not in the cache"),
    ],
)
def test_what_cannot_be_had_is_one_line(snapshot, address, message):
    with pytest.raises(ValueError, match=message) as refused:
        hub.local(address)
    assert "\n" not in str(refused.value)


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub"):
        hub.local(f"hf://{REPOSITORY}/model.pt")


def test_a_component_is_checked_and_loaded_by_its_address(snapshot, tmp_path):
    config = digits.get_config("tiny")
    decoder = component(config, "decoder")
    shapes = unbox(jax.eval_shape(decoder.init, jax.random.key(0)))
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), shapes)
    save_weights(snapshot / "decoders" / "digits", params, {"component": "decoder"})
    address = config.decoder.weights = f"hf://{REPOSITORY}/decoders/digits"
    config = resolved(config, tmp_path / "run")
    assert config.decoder.weights == address  # what a run remembers is not a path of this machine
    decoder.check(address)
    jax.tree.map(np.testing.assert_array_equal, decoder.load(address), params)
    with pytest.raises(ValueError, match=r"config\.encoder\.weights='hf://.*' does not fit config\.encoder\.model"):
        component(config, "encoder").check(address)
