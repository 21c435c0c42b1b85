"""What the stages of a run leave goes out as official files, by component, and is the same once it is read again."""

import json

import jax
import numpy as np
import pytest

from configs import digits, digits_rac, digits_rpiae
from rae_jax.components.catalogue import component, trained_components
from rae_jax.experiment.weights import Weights
from rae_jax.interop.checkpoint_files import read_tensors
from rae_jax.interop.weights import read_weights
from tools.convert import export_checkpoint, import_checkpoint

EXPERIMENTS = {"digits": digits, "digits_rpiae": digits_rpiae, "digits_rac": digits_rac}
STAGES = [(name, stage) for name, file in EXPERIMENTS.items() for stage in file.get_config("tiny").stages]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Working directories as the three laptop experiments leave them, with random numbers for weights."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for name, file in EXPERIMENTS.items():
        config = file.get_config("tiny")
        plain = json.loads(config.to_json_best_effort())
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(plain))
        weights = Weights(config, plain, folder / name, mesh=None, warn=print)
        for stage in config.stages:
            drawn = {
                part: jax.tree.map(
                    lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32),
                    component(config, part).structure(),
                )
                for part in trained_components(config, stage)
            }
            weights.save(stage, drawn if len(drawn) > 1 else next(iter(drawn.values())), {"seconds": 1.0})
    return folder


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_every_component_that_a_stage_trains_is_exported_and_read_back_the_same(runs, tmp_path, name, stage):
    config, left = EXPERIMENTS[name].get_config("tiny"), runs / name / stage / "weights"
    for trained in trained_components(config, stage):
        part = component(config, trained)
        several = len(trained_components(config, stage)) > 1
        official = tmp_path / f"{trained}.safetensors"
        # The halves of the bridge are in one file, so that it is made of what the stage has left of both.
        source = left / trained if several and part.kind != "rpiae_bridge" else left
        export_checkpoint(part.kind, source, official)
        import_checkpoint(part.kind, str(official), tmp_path / trained, config=f"configs/{name}.py:tiny")
        trained_weights = part.load(left / trained if several else left)
        for other in (tmp_path / trained, official):
            jax.tree.map(np.testing.assert_array_equal, part.load(other), trained_weights)


def test_weights_say_which_component_they_are(runs):
    assert read_weights(runs / "digits_rpiae/pivot/weights/decoder")[0]["component"] == "decoder"
    assert read_weights(runs / "digits_rpiae/specialisation/weights")[0]["component"] == "decoder"
    assert read_weights(runs / "digits/flow/weights")[0]["component"] == "flow"


def test_a_whole_tokenizer_is_exported_from_the_last_weights_of_a_run(runs, tmp_path):
    config, official = digits_rpiae.get_config("tiny"), tmp_path / "rpiae.pt"
    pytest.importorskip("torch")
    exported = export_checkpoint("rpiae", runs / "digits_rpiae", official)
    last = component(config, "decoder").load(runs / "digits_rpiae/specialisation/weights")
    np.testing.assert_array_equal(exported["decoder.decoder_pred.bias"], last["pixels"]["bias"])
    assert read_tensors(official).keys() == exported.keys()
    import_checkpoint("rpiae", str(official), tmp_path / "rpiae", config="configs/digits_rpiae.py:tiny")
    for part in ("encoder", "decoder", "bridge_encoder", "bridge_decoder"):
        where = {"encoder": "pivot/weights/encoder", "decoder": "specialisation/weights"}.get(
            part, f"bridge/weights/{part}"
        )
        there = component(config, part).load(runs / "digits_rpiae" / where)
        jax.tree.map(np.testing.assert_array_equal, component(config, part).load(tmp_path / "rpiae"), there)


@pytest.mark.parametrize(
    ("kind", "source", "chosen", "message"),
    [
        ("dit_dh", "digits/decoder", "", r"decoder holds decoder, of which none is a model of kind 'dit_dh'"),
        (
            "latent_stats",
            "digits_rpiae",
            "",
            r"several components of kind 'latent_stats': choose .*feature_stats or stats",
        ),
        ("rpiae", "digits", "", r"holds encoder, decoder, bridge_encoder.* has no bridge_encoder, bridge_decoder"),
        ("dit_dh", "digits", "coder", r"has no weights of 'coder'; it has encoder, decoder"),
        ("dit_dh", "", "", "holds none, and is no working directory"),
    ],
)
def test_what_is_not_there_is_said_and_nothing_is_written(runs, tmp_path, kind, source, chosen, message):
    with pytest.raises(ValueError, match=message):
        export_checkpoint(kind, runs / source, tmp_path / "x.safetensors", component=chosen)
    assert not list(tmp_path.iterdir())
