"""Bagel's checkpoints from and to our mixture of transformers, and its start from a language model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from golden import cases
from golden_mixtures import mixture
from random_params import random_params

from rae_jax.components.component import Component
from rae_jax.interop import bagel, kinds
from rae_jax.interop.checkpoint_files import write_safetensors
from rae_jax.interop.layout import flatten
from rae_jax.interop.weights import load_weights
from rae_jax.models.language_model import SIZES, LanguageModel
from rae_jax.models.mixture_of_transformers import Images, MixtureOfTransformers, Texts
from rae_jax.models.pack import Places

WHOLE = ("bagel_edit", "bagel_t2i_loss", "bagel_t2i_sampling")


def structure(model):
    """Shapes of a model's parameters."""
    places = Places(*[jax.ShapeDtypeStruct((1, 1), jnp.int32)] * 5)
    index = jax.ShapeDtypeStruct((1, 1), jnp.int32)

    def images(channels):
        time = jax.ShapeDtypeStruct((1, 1), jnp.float32)
        return Images(jax.ShapeDtypeStruct((1, 1, channels), jnp.float32), index, places, time)

    semantic = images(model.semantic_channels) if model.semantic_channels else None
    arguments = Texts(index, places), images(model.latent_channels), None, semantic
    return meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"])


def shapes(tree):
    return {path: leaf.shape for path, leaf in flatten(tree).items()}


@cases(*WHOLE)
def test_a_checkpoint_fits_its_module_exactly_and_comes_back_as_the_same_tensors(case):
    model, params, read = mixture(case)
    assert kinds.identify(case.weights) == "bagel"
    assert shapes(structure(model)) == shapes(params)
    back = kinds.export_model("bagel", read)
    assert back.keys() == case.weights.keys()
    for name, tensor in case.weights.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    computed = kinds.find("bagel").write(type(read)(read.architecture, read.params))
    for name in read.carried:
        np.testing.assert_allclose(computed[name], case.weights[name], atol=1e-6, err_msg=name)


def test_the_7b_has_the_parameters_of_the_published_checkpoint():
    size = {name: value for name, value in SIZES["qwen2.5-7b"].items() if name not in ("tied", "qk_norm")}
    vision = {"positions": 70**2, "width": 1152, "depth": 26, "num_heads": 16, "mlp_dim": 4304}
    architecture = size | {
        "latent_channels": 64,
        "latent_capacity": 64,
        "qk_norm": True,
        "language_head": "own",
        "semantic_channels": 588,
        "semantic_capacity": 70,
        "vision": vision,
    }
    one = architecture | {"depth": 1, "vision": vision | {"depth": 1}}  # layers are alike: the first is traced
    ours = {}
    for path, shape in shapes(structure(MixtureOfTransformers(**one))).items():
        depth = vision["depth"] if path.startswith("vision") else architecture["depth"]
        layers = range(depth) if "blocks_0/" in path else [0]
        ours |= {path.replace("blocks_0/", f"blocks_{i}/"): shape for i in layers}
    rules = bagel.rules(architecture)
    assert {name for rule in rules for name in ([rule.ours] if isinstance(rule.ours, str) else rule.ours)} == set(ours)
    official = {n for rule in rules for n in ([rule.official] if isinstance(rule.official, str) else rule.official)}
    layer = "language_model.model.layers.27."
    assert {
        f"{layer}self_attn.q_proj_moe_gen.bias",
        f"{layer}self_attn.k_norm_moe_gen.weight",
        f"{layer}mlp_moe_gen.gate_proj.weight",
        f"{layer}post_attention_layernorm_moe_gen.weight",
        "language_model.model.norm_moe_gen.weight",
        "language_model.lm_head.weight",
        "vit_model.vision_model.encoder.layers.25.self_attn.out_proj.weight",
        "time_embedder.mlp.2.bias",
        "connector.fc2.weight",
    } <= official
    assert f"{layer}self_attn.o_proj.bias" not in official
    # Two Qwen2.5-7B but for the table and the head, and a SigLIP-so400m.
    assert round(sum(np.prod(shape) for shape in ours.values()) / 1e9, 1) == 14.6


@pytest.mark.parametrize("scan", [False, True])
def test_both_experts_start_as_the_language_model(scan):
    size = {"vocabulary": 13, "width": 8, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "hidden": 12}
    language = LanguageModel(**size, scan=scan)
    qwen = random_params(language, np.zeros((1, 2), np.int32))
    new = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 7.0, np.float32),
        structure(MixtureOfTransformers(**size, latent_channels=3, latent_capacity=2, scan=scan)),
    )
    started = bagel.from_language_model(qwen, new)
    assert shapes(started) == shapes(new)
    ours, given, before = flatten(started), flatten(qwen), flatten(new)
    kept = {path for path in ours if ours[path] is before[path]}
    assert {path.split("/")[-2] for path in kept} == {
        "query_norm", "key_norm", "from_latent", "to_latent", "hidden", "out"
    } and not any("/out/" in path for path in kept if path.startswith("decoder"))  # fmt: skip
    for expert in ("understanding", "generation"):
        for path in set(given) - {"embedding"}:
            theirs = path.replace("attention/", f"{expert}/").replace("mlp", f"{expert}/mlp", 1)
            theirs = theirs.replace("attention_norm", f"{expert}/attention_norm")
            theirs = f"{expert}_norm/scale" if path == "norm/scale" else theirs
            np.testing.assert_array_equal(ours[f"decoder/{theirs}"], given[path], err_msg=path)
    np.testing.assert_array_equal(ours["embedding"], given["embedding"])


def test_what_bagels_files_cannot_hold_is_said():
    architecture = {"latent_capacity": 2, "width": 8, "language_head": "", "head_grid": 2}
    model = type("Model", (), {"architecture": architecture, "params": {}, "carried": {}})()
    with pytest.raises(ValueError, match="this model has a wide head"):
        bagel.write(model)
    architecture |= {"head_grid": 0, "semantic_channels": 4}
    with pytest.raises(ValueError, match="no semantic tokens but those of their own vision encoder"):
        bagel.write(model)


@cases(*WHOLE, where=lambda case: not case.constructor["visual_und"])  # configs have no vision encoder
def test_a_config_may_name_an_official_file_as_its_weights(case, tmp_path):
    model, params, _ = mixture(case)
    write_safetensors(tmp_path / "ema.safetensors", case.weights)
    part = Component("mixture", model, lambda key: model, "float32", "bagel", "", "this test")
    loaded = load_weights(tmp_path / "ema.safetensors", structure(model), part.origin("file"), model, "mixture")
    assert shapes(loaded) == shapes(params)
    for path, value in flatten(loaded).items():
        np.testing.assert_array_equal(value, flatten(params)[path], err_msg=path)
