"""Language models from directories as Hugging Face has them, whole and cut to a tokenizer."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from rae_jax.interop import kinds
from rae_jax.interop.checkpoint_files import write_safetensors
from rae_jax.interop.model import Model
from rae_jax.interop.weights import Origin, load_weights
from rae_jax.models.language_model import LanguageModel

TINY = {"vocabulary": 12, "width": 8, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "hidden": 8}
ORIGIN = Origin("config.language_model.weights", "config.language_model.model")


def written(folder, **options):
    """A sharded directory of a model, and its tensors."""
    model = LanguageModel(**TINY | options)
    params = random_params(model, jnp.zeros((1, 2), jnp.int32))
    tensors = kinds.export_model("qwen", Model(vars(model), params))
    names = sorted(tensors)
    places = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        write_safetensors(folder / shard, {name: tensors[name] for name in names if places[name] == shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return model, tensors


def loaded(folder, model):
    structure = random_params(model, jnp.zeros((1, 2), jnp.int32))
    return load_weights(folder, structure, ORIGIN, model)


@pytest.mark.parametrize("options", [{}, {"tied": False, "qk_norm": True, "qkv_bias": False}], ids=str)
def test_a_directory_of_shards_is_loaded(options, tmp_path):
    model, tensors = written(tmp_path, **options)
    params = loaded(tmp_path, model)
    np.testing.assert_array_equal(params["embedding"], tensors["model.embed_tokens.weight"])
    kernel = params["blocks_1"]["mlp"]["down"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["model.layers.1.mlp.down_proj.weight"].T)


def test_a_longer_table_is_cut_and_the_marks_begin_at_the_mean(tmp_path):
    _, tensors = written(tmp_path, tied=False)
    params = loaded(tmp_path, LanguageModel(**TINY | {"vocabulary": 9, "tied": False}))
    for ours, theirs in (("embedding", "model.embed_tokens.weight"), ("head", "lm_head.weight")):
        assert params[ours].shape == (9, 8)
        np.testing.assert_array_equal(params[ours][:7], tensors[theirs][:7])
        np.testing.assert_allclose(params[ours][7:], np.tile(tensors[theirs][:7].mean(0), (2, 1)), rtol=1e-6)
    with pytest.raises(ValueError, match="vocabulary is 15 in the config, 12 in the file"):
        loaded(tmp_path, LanguageModel(**TINY | {"vocabulary": 15, "tied": False}))


def test_what_tensors_do_not_tell_is_asked_for(tmp_path):
    _, tensors = written(tmp_path)
    with pytest.raises(ValueError, match="give num_heads"):
        kinds.import_model("qwen", tensors)
    with pytest.raises(ValueError, match="do not divide over num_heads=3"):
        kinds.import_model("qwen", tensors, num_heads=3)
    model = kinds.import_model("qwen", tensors, num_heads=2, rope_theta=1e4)
    assert model.architecture["rope_theta"] == 1e4
