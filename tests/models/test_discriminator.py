"""The DINO discriminator against the golden outputs, and its parts against closed forms."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Case, cases, nhwc
from random_params import random_params

from rae_jax.interop.dino_disc import export_heads, import_dino, import_heads
from rae_jax.models.discriminator import DINO_S8, DinoDiscriminator, DinoFeatures, Heads, SpectralConv
from rae_jax.objectives.adversarial import generator_loss, hinge_discriminator_loss


class Reference(NamedTuple):
    """Our discriminator for a golden case, with its variables."""

    model: DinoDiscriminator
    params: Any
    spectral: Any
    features: Any  # `DinoFeatures.apply`, compiled


@functools.cache
def reference(case: Case) -> Reference:
    constructor = case.constructor
    recipe, dino_weights = constructor["recipe"], case.weights_under("dino.")
    dino = DinoFeatures(
        image_size=math.isqrt(dino_weights["pos_embed"].shape[1] - 1) * recipe["patch_size"],
        patch_size=recipe["patch_size"],
        width=recipe["embed_dim"],
        depth=recipe["depth"],
        num_heads=recipe["num_heads"],
        mlp_dim=int(recipe["embed_dim"] * recipe["mlp_ratio"]),
        key_depths=tuple(constructor["key_depths"]),
        norm_epsilon=recipe["norm_eps"],
    )
    heads = Heads(constructor["ks"], constructor["using_spec_norm"], constructor["norm_eps"])
    dino_params, _ = import_dino(dino_weights, recipe["num_heads"])
    imported = import_heads(case.weights_under("heads."))
    params = {"dino": dino_params, "heads": imported["params"]}
    return Reference(DinoDiscriminator(dino, heads), params, {"heads": imported["spectral"]}, jax.jit(dino.apply))


@cases("dino_disc")
def test_frozen_features_equal_the_reference(case):
    discriminator, call = reference(case), case.call("frozen DINO")
    features = discriminator.features({"params": discriminator.params["dino"]}, nhwc(call.inputs["x"]))
    assert len(features) == len(call.outputs)
    for i, feature in enumerate(features):
        case.assert_close(feature.swapaxes(1, 2), call.outputs[f"activation_{i}"])


@cases("dino_disc")
def test_logits_and_the_generators_gradient_equal_the_reference(case):
    model, params, spectral, _ = reference(case)
    variables = {"params": params, "spectral": spectral}

    def loss(images, variables):
        logits = model.apply(variables, images)
        return generator_loss(logits), logits

    forward, backward = case.call(r"forward \(eval mode.*"), case.call("vanilla_g_loss.*")
    value_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for images in ("fake", "real"):
        (_, logits), _ = value_and_gradient(nhwc(forward.inputs[images]), variables)
        case.assert_close(logits, forward.outputs[f"logits_{images}"])
    (value, _), gradient = value_and_gradient(nhwc(backward.inputs["fake"]), variables)
    case.assert_close(value, backward.outputs["loss"])
    case.assert_gradient_close(gradient, nhwc(backward.outputs["grad wrt fake image"]))


@cases("dino_disc")
def test_a_training_step_equals_the_reference_power_iteration_and_gradient_included(case):
    model, params, spectral, _ = reference(case)
    call = case.call(r"forward \(train mode.*")

    def loss(heads, dino, spectral, batches):
        def judge(spectral, images):
            variables = {"params": {"dino": dino, "heads": heads}, "spectral": spectral}
            logits, new = model.apply(variables, images, True, mutable=["spectral"])
            return new["spectral"], logits

        new, logits = jax.lax.scan(judge, spectral, batches)
        return hinge_discriminator_loss(logits[1], logits[0]), (logits, new)

    batches = np.stack([nhwc(call.inputs[name]) for name in ("fake", "real")])  # the reference judges the fakes first
    value_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (logits, new)), gradient = value_and_gradient(params["heads"], params["dino"], spectral, batches)
    case.assert_close(logits[0], call.outputs["logits_fake"])
    case.assert_close(logits[1], call.outputs["logits_real"])
    case.assert_close(value, call.outputs["hinge_d_loss"])
    # Official names and layouts, to compare with: gradients have those of the parameters.
    gradients = export_heads({"params": jax.tree.map(np.asarray, gradient), "spectral": spectral["heads"]})
    after = export_heads({"params": params["heads"], "spectral": jax.tree.map(np.asarray, new["heads"])})
    expected = call.gradients("hinge loss")
    assert expected
    for name, official in expected.items():
        case.assert_gradient_close(gradients[name.removeprefix("heads.")], official)
    updated = {name: value for name, value in call.outputs.items() if name.endswith(" after both calls")}
    assert updated
    for name, official in updated.items():
        case.assert_close(after[name.removeprefix("heads.").split()[0]], official)


def test_power_iterations_find_the_largest_singular_value():
    model, x = SpectralConv(features=5, kernel_size=3), np.ones((1, 4, 6), np.float32)

    @jax.jit
    def converged(key):
        variables = nn.unbox(model.init(key, x, False))

        def update(_, spectral):
            changed = {"params": variables["params"], "spectral": spectral}
            return model.apply(changed, x, True, mutable=["spectral"])[1]["spectral"]

        variables["spectral"] = jax.lax.fori_loop(0, 100, update, variables["spectral"])
        return variables, model.apply(variables, x, False)

    variables, actual = converged(jax.random.key(0))
    kernel = variables["params"]["kernel"]
    largest = np.linalg.svd(np.asarray(kernel).reshape(-1, 5), compute_uv=False)[0]
    plain = SpectralConv(features=5, kernel_size=3, spectral_norm=False)
    expected = jax.jit(plain.apply, static_argnums=2)(
        {"params": {**variables["params"], "kernel": kernel / largest}}, x, False
    )
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_without_an_update_the_power_iteration_stays():
    model, x = Heads(kernel_size=3), [np.ones((1, 4, 6), np.float32)]

    @jax.jit
    def before_and_after(key):
        variables = model.init(key, x)
        return variables["spectral"], model.apply(variables, x, mutable=["spectral"])[1]["spectral"]

    before, after = before_and_after(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_convolution_is_circular_over_the_tokens():
    conv = SpectralConv(features=2, kernel_size=3, spectral_norm=False)
    x = np.random.default_rng(0).normal(size=(1, 5, 3)).astype(np.float32)
    params, apply = random_params(conv, x, False), jax.jit(conv.apply, static_argnums=2)
    rolled, plain = (apply({"params": params}, each, False) for each in (np.roll(x, 2, axis=1), x))
    np.testing.assert_allclose(rolled, np.roll(plain, 2, axis=1), atol=1e-5)


@cases("dino_disc")
def test_a_bias_of_the_keys_which_the_reference_deletes_does_not_change_the_features(case):
    discriminator, images = reference(case), nhwc(case.call("frozen DINO").inputs["x"])

    def biased(path, leaf):
        names = [entry.key for entry in path]
        return leaf + np.float32([0, 0.7, 0])[:, None] if names[-2:] == ["qkv", "bias"] else leaf  # [K, 3, E]

    plain = discriminator.params["dino"]
    changed = jax.tree_util.tree_map_with_path(biased, plain)
    for a, b in zip(*(discriminator.features({"params": p}, images) for p in (plain, changed)), strict=True):
        case.assert_close(a, b, part=0.1)


@cases("dino_disc")
def test_rematerialised_bfloat16_features_stay_near_float32(case):
    discriminator, call = reference(case), case.call("frozen DINO")
    rounding = discriminator.model.dino.clone(dtype=jnp.bfloat16, remat="full")
    rounded = jax.jit(rounding.apply)({"params": discriminator.params["dino"]}, nhwc(call.inputs["x"]))
    for i, feature in enumerate(rounded):
        exact = call.outputs[f"activation_{i}"].swapaxes(1, 2)
        assert feature.dtype == jnp.float32
        assert 1e-3 < np.abs(exact - feature).max() / np.abs(exact).max() < 0.1


def test_the_published_discriminator_has_five_heads_on_784_tokens_and_a_vit_s():
    model = DinoDiscriminator(DinoFeatures(**DINO_S8), Heads())
    images = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert logits.shape == (2, 5 * 784)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["dino"]))
    assert round(count / 1e6) in (21, 22)


def test_frozen_features_equal_hugging_faces_vision_transformer():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, patch_size=4, image_size=12,
        hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6,
    )  # fmt: skip
    reference = transformers.ViTModel(config, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    images = np.random.default_rng(0).uniform(-1, 1, size=(2, 12, 12, 3)).astype(np.float32)
    normalised = ((images + 1) / 2 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.no_grad():
        pixels = torch.tensor(normalised.astype(np.float32)).permute(0, 3, 1, 2)
        states = reference(pixels, output_hidden_states=True).hidden_states
    params, carried = import_dino(dino_names(reference), num_heads=2)
    assert set(carried) == {"norm.weight", "norm.bias"}
    model = DinoFeatures(
        image_size=12, patch_size=4, width=16, depth=3, num_heads=2, mlp_dim=32, key_depths=(0, 2)
    )  # fmt: skip
    features = jax.jit(model.apply)({"params": params}, images)
    for feature, depth in zip(features, (2, 0, 2), strict=True):
        np.testing.assert_allclose(feature, states[depth + 1][:, 1:], atol=1e-4, rtol=1e-4)


def dino_names(model) -> dict[str, np.ndarray]:
    """The tensors of Hugging Face's ViT as DINO's own files name them: query, key and value in one."""
    plain = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
    }
    inner = {
        "attention.o_proj": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    named = {}
    for official, ours in plain.items():
        for end in ("", ".weight", ".bias"):
            if official + end in tensors:
                named[ours + end] = tensors[official + end]
    for i in range(model.config.num_hidden_layers):
        for end in ("weight", "bias"):
            qkv = [tensors[f"layers.{i}.attention.{x}_proj.{end}"] for x in "qkv"]
            named[f"blocks.{i}.attn.qkv.{end}"] = np.concatenate(qkv)
            for official, ours in inner.items():
                named[f"blocks.{i}.{ours}.{end}"] = tensors[f"layers.{i}.{official}.{end}"]
    return named
