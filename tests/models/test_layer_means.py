"""RAEv2's latents: DINOv3 under Meta's names, means of layers, train-mode coordinates, plain pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, nhwc, tokens
from random_params import random_params

from rae_jax.interop import decoder, kinds, vit
from rae_jax.interop.layout import stack_blocks, unstack_blocks
from rae_jax.interop.model import Model
from rae_jax.models.autoencoder import LatentStatistics, RepresentationAutoencoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.vit import VisionTransformer, rotary_positions

TINY = {"image_size": 0, "patch_size": 4, "width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 24, "num_registers": 2}
TINY |= {"layer_scale": True, "key_bias": False, "positions": "rotary", "norm_epsilon": 1e-5, "stored_periods": True}


@functools.cache
def parts(case):
    """Models of encoder and decoder in the file."""
    config = case.description["encoder_config"]
    encoder = kinds.import_model("dinov3_meta", case.weights_under("encoder."), num_heads=config["num_heads"])
    architecture = case.description["decoder_config"]
    heads = architecture["decoder_num_attention_heads"]
    grid = architecture["image_size"] // architecture["patch_size"]
    return encoder, decoder.read(case.weights_under("decoder."), num_heads=heads, grid_size=grid)


def autoencoder(case, layers):
    """The frame of a case with that mean of layers, and its variables."""
    encoder, pixels = parts(case)
    constructor = case.constructor
    model = RepresentationAutoencoder(
        VisionTransformer(**encoder.architecture, layers=tuple(layers)),
        ViTDecoder(**pixels.architecture, norm_epsilon=case.description["decoder_config"]["layer_norm_eps"]),
        encoder_input_size=constructor["resolution"],
        image_mean=tuple(constructor["image_mean"]),
        image_std=tuple(constructor["image_std"]),
        plain_pixels=True,
    )
    return model, {"params": {"encoder": encoder.params, "decoder": pixels.params}}


def statistics(call):
    return LatentStatistics(*(tokens(call.inputs[f"latent_{moment}"]) for moment in ("mean", "var")))


@cases("raev2_encoder")
def test_tokens_of_the_last_block_and_means_of_layers_are_the_references(case):
    images = None
    for call in case.calls("encoder dinov3.*"):
        layers = call.inputs.get("layers", ())
        model, variables = autoencoder(case, layers)
        images = nhwc(call.inputs["image"])
        case.assert_close(jax.jit(lambda v, x, m=model: m.apply(v, x, method="tokens"))(variables, images),
                          call.outputs["tokens"])  # fmt: skip
        if "image after preprocessing" in call.outputs:
            preprocessed = jax.jit(functools.partial(model.apply, {}, method="preprocess"))(images)
            case.assert_close(preprocessed, nhwc(call.outputs["image after preprocessing"]))
            encoder, _ = parts(case)
            grid = (model.encoder_input_size // model.encoder.patch_size,) * 2
            turned = jax.jit(lambda periods, grid=grid: rotary_positions(grid, periods, 0))
            turned = turned(encoder.params["rope_periods"])
            for ours, theirs in zip(turned, ("rope cosines per patch", "rope sines per patch"), strict=True):
                case.assert_close(np.tile(ours, 2), call.outputs[theirs])
    assert images is not None


@cases("raev2_encoder")
def test_latents_and_plain_pixels_are_the_references(case):
    layers = case.constructor["layers"]
    model, variables = autoencoder(case, layers)
    encode = jax.jit(lambda v, x, s: model.apply(v, x, s, method="encode"))
    for call in case.calls(r"encode \(eval.*"):
        case.assert_close(encode(variables, nhwc(call.inputs["x"]), statistics(call)), tokens(call.outputs["latent"]))
    call = case.call("decode")
    decode = jax.jit(functools.partial(model.apply, method="decode"))
    decoded = decode(variables, tokens(call.inputs["z"]), statistics(call))
    case.assert_close(decoded, nhwc(call.outputs["image"]))

    @jax.jit
    def noisy(variables, images, scales, noise, statistics):
        return statistics.normalise(model.apply(variables, images, coordinate_scales=scales, method="tokens") + noise)

    for call in case.calls(r"encode \(training.*"):
        noise = case.constructor["noise_tau"] * call.inputs["uniform"] * call.inputs["normal"]
        z = noisy(variables, nhwc(call.inputs["x"]), call.inputs["rope_factor"], noise, statistics(call))
        case.assert_close(z, tokens(call.outputs["latent"]))


@cases("raev2_encoder")
def test_metas_file_comes_back_as_the_same_tensors_whatever_is_under_the_mask(case):
    official = case.weights_under("encoder.")
    assert kinds.identify(official) == "dinov3_meta"
    model, _ = parts(case)
    back = kinds.export_model("dinov3_meta", model)
    assert back.keys() == official.keys()
    for name, w in official.items():
        np.testing.assert_array_equal(back[name], w, err_msg=name)
    fresh = kinds.export_model("dinov3_meta", Model(model.architecture, model.params))
    assert fresh.keys() == official.keys()
    masked = [name for name in official if name.endswith("bias_mask")]
    assert masked and all(np.array_equal(fresh[name], official[name]) for name in masked)
    damaged = official | {masked[0]: np.ones_like(official[masked[0]])}
    with pytest.raises(ValueError, match="masks others than the keys"):
        kinds.import_model("dinov3_meta", damaged, num_heads=model.architecture["num_heads"])
    missing = {name: w for name, w in official.items() if name != "blocks.1.attn.qkv.bias"}
    with pytest.raises(ValueError, match=r"missing    blocks\.1\.attn\.qkv\.bias"):
        kinds.import_model("dinov3_meta", missing, num_heads=model.architecture["num_heads"])


def test_scanned_blocks_keep_the_same_layers_and_turn_by_scales_of_their_own():
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    scanned = VisionTransformer(**TINY, scan=True, layers=(0, 2))
    params, scales = random_params(scanned, images), np.float32([0.5, 1.0, 2.0])

    def plain_and_scaled(model, params):
        apply = functools.partial(model.apply, {"params": params}, images)
        return jnp.stack([apply(), apply(coordinate_scales=scales)])

    both = jax.jit(plain_and_scaled, static_argnums=0)
    expected = both(scanned.clone(scan=False), unstack_blocks(params))
    np.testing.assert_allclose(both(scanned, params), expected, atol=1e-5)
    assert np.abs(expected[1] - expected[0]).max() > 1e-4
    assert stack_blocks(unstack_blocks(params), params).keys() == params.keys()


def test_dinov2_of_metas_names_is_hugging_faces_under_others():
    widths = {
        "image_size": 8,
        "patch_size": 4,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_dim": 24,
        "num_registers": 4,
    }
    for activation in ("gelu", "swiglu"):
        architecture = widths | {"layer_scale": True, "activation": activation}
        architecture |= {"position_interpolation": "bicubic_antialias"}
        images = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
        params = random_params(VisionTransformer(**architecture), images)
        official = kinds.export_model("dinov2_meta", Model(architecture, params))
        assert {"pos_embed", "register_tokens", "blocks.1.ls2.gamma", "mask_token", "norm.weight"} < official.keys()
        assert official["blocks.0.attn.qkv.weight"].shape == (48, 16)
        assert ("blocks.0.mlp.w12.weight" in official) == (activation == "swiglu")
        assert kinds.identify(official) == "dinov2_meta"
        back = kinds.import_model("dinov2_meta", official, num_heads=2)
        jax.tree.map(np.testing.assert_array_equal, back.params, params)
        # Rows of the one matrix are those of queries, keys and values.
        theirs = vit.export_encoder(params, "dinov2" + "_swiglu" * (activation == "swiglu"), architecture)
        stem = "encoder.layer.0.attention.attention"
        rows = np.concatenate([theirs[f"{stem}.{part}.weight"] for part in ("query", "key", "value")])
        np.testing.assert_array_equal(official["blocks.0.attn.qkv.weight"], rows)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_dinov3_of_metas_names_without_registers_or_mask_comes_back(activation):
    architecture = TINY | {"num_registers": 0, "key_bias": True, "activation": activation}
    images = np.zeros((1, 8, 8, 3), np.float32)
    params = random_params(VisionTransformer(**architecture), images)
    official = kinds.export_model("dinov3_meta", Model(architecture, params))
    assert not any(name.endswith("bias_mask") or name == "storage_tokens" for name in official)
    assert ("blocks.0.mlp.w1.weight" in official) == (activation == "swiglu")
    back = kinds.import_model("dinov3_meta", official, num_heads=architecture["num_heads"])
    jax.tree.map(np.testing.assert_array_equal, back.params, params)


@pytest.mark.parametrize(
    ("change", "scales", "message"),
    [
        ({"layers": (0, 3)}, None, r"layers=\(0, 3\) are not numbers of 3 blocks"),
        ({"layers": (1, 1)}, None, "each once"),
        ({"positions": "sincos", "image_size": 8, "stored_periods": False}, np.ones(3), "'sincos' here"),
    ],
)
def test_mistakes_are_refused_by_name(change, scales, message):
    images = np.zeros((1, 8, 8, 3), np.float32)
    init = functools.partial(VisionTransformer(**TINY | change).init, coordinate_scales=scales)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(init, jax.random.key(0), images)
