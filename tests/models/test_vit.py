"""The vision encoders against the golden outputs, against Hugging Face's PyTorch models, and against themselves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, nhwc
from golden_modules import autoencoder
from random_params import random_params

from rae_jax.interop.layout import unstack_blocks
from rae_jax.interop.vit import import_encoder
from rae_jax.models.embeddings import sincos_table
from rae_jax.models.vit import PRETRAINED, VisionTransformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = {"image_size": 12, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
EVERYTHING = {**TINY, "num_registers": 2, "layer_scale": True, "activation": "swiglu"}
HUGGING_FACE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4}


def images_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)


@cases("rae_dinov2", "rae_siglip2", "rae_mae")
def test_tokens_equal_the_reference(case):
    model, params, _ = autoencoder(case)
    call = case.call("encoder")
    tokens = jax.jit(model.encoder.apply)({"params": params["encoder"]}, nhwc(call.inputs["pixel_values"]))
    case.assert_close(tokens, call.outputs["tokens"])


def randomised(model):
    """The PyTorch model with random weights, except the last norm, which RAE has without scale and bias."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("layernorm.", "post_layernorm.")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def ours_of(torch_model):
    """Our module, its compiled `apply` and its parameters for a Hugging Face model."""
    tensors = {name: value.numpy() for name, value in torch_model.state_dict().items()}
    architecture, params, _ = import_encoder(tensors, num_heads=HUGGING_FACE["num_attention_heads"])
    model = VisionTransformer(**architecture)
    return model, jax.jit(model.apply), params


SIZES = [(20, 20), (12, 12), (32, 24)]  # the position table's own grid, a smaller one, one that is not square


@pytest.mark.parametrize("swiglu", [False, True])
def test_dinov2_with_registers_equals_hugging_face(swiglu):
    config = transformers.Dinov2WithRegistersConfig(
        **HUGGING_FACE, image_size=20, num_register_tokens=3, use_swiglu_ffn=swiglu
    )
    reference = randomised(transformers.Dinov2WithRegistersModel(config))
    model, apply, params = ours_of(reference)
    assert model.activation == ("swiglu" if swiglu else "gelu")
    for size in SIZES[-1:] if swiglu else SIZES:  # positions do not depend on it
        images = images_of(*size)
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state[:, 4:]
        np.testing.assert_allclose(
            apply({"params": params}, images), expected.detach(), atol=3e-5, rtol=1e-4, err_msg=str(size)
        )


def test_dinov2_without_registers_equals_hugging_face():
    reference = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**HUGGING_FACE, image_size=20)))
    _, apply, params = ours_of(reference)
    for size in SIZES:
        images = images_of(*size)
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state[:, 1:]
        np.testing.assert_allclose(
            apply({"params": params}, images), expected.detach(), atol=3e-5, rtol=1e-4, err_msg=str(size)
        )


def test_siglip_equals_hugging_face():
    config = transformers.SiglipVisionConfig(**HUGGING_FACE, intermediate_size=48, image_size=20)
    reference = randomised(transformers.SiglipVisionModel(config))
    _, apply, params = ours_of(reference)
    for size in SIZES:
        images = images_of(*size)
        pixels = torch.tensor(images).permute(0, 3, 1, 2)
        expected = reference(pixels, interpolate_pos_encoding=True).last_hidden_state
        np.testing.assert_allclose(
            apply({"params": params}, images), expected.detach(), atol=3e-5, rtol=1e-4, err_msg=str(size)
        )


def test_siglip2_naflex_equals_hugging_face_on_grids_of_any_size():
    config = transformers.Siglip2VisionConfig(**HUGGING_FACE, intermediate_size=48, num_patches=25)
    reference = randomised(transformers.Siglip2VisionModel(config))
    model, apply, params = ours_of(reference)
    assert model.position_interpolation == "bilinear_antialias" and (model.image_size, model.patch_size) == (20, 4)
    for height, width in SIZES:
        images, grid = images_of(height, width), (height // 4, width // 4)
        patches = images.reshape(2, grid[0], 4, grid[1], 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, -1, 48)
        everywhere, shapes = torch.ones(2, grid[0] * grid[1], dtype=torch.long), torch.tensor([grid, grid])
        expected = reference(torch.tensor(patches), everywhere, shapes).last_hidden_state
        np.testing.assert_allclose(
            apply({"params": params}, images), expected.detach(), atol=3e-5, rtol=1e-4, err_msg=str(grid)
        )


def test_masked_and_unmasked_mae_equal_hugging_face():
    config = transformers.ViTMAEConfig(**HUGGING_FACE, intermediate_size=48, image_size=20, mask_ratio=0.0)
    reference = randomised(transformers.ViTMAEModel(config))
    _, apply, params = ours_of(reference)
    for size in SIZES:
        images = images_of(*size)
        pixels = torch.tensor(images).permute(0, 3, 1, 2)
        num_patches = size[0] * size[1] // 16
        # Hugging Face keeps the patches of smallest noise, in the order of the noise.
        noise = np.random.default_rng(1).uniform(size=(2, num_patches)).astype(np.float32)
        order = np.argsort(noise, axis=1)
        for mask_ratio, keep in ((0.0, order), (0.5, order[:, : num_patches // 2 + num_patches % 2])):
            if mask_ratio and not num_patches % 2:  # the harder half of an odd number
                continue
            reference.config.mask_ratio = mask_ratio
            reference.embeddings.config.mask_ratio = mask_ratio
            expected = reference(pixels, noise=torch.tensor(noise), interpolate_pos_encoding=True).last_hidden_state
            expected = expected[:, 1:].detach().numpy()
            actual = apply({"params": params}, images, keep=keep[:, : expected.shape[1]])
            np.testing.assert_allclose(actual, expected, atol=3e-5, rtol=1e-4, err_msg=f"{size} {mask_ratio}")


def test_keeping_all_patches_in_another_order_permutes_the_tokens():
    model, images = VisionTransformer(**EVERYTHING), images_of(12, 12)
    params = random_params(model, images)
    order = np.stack([np.random.default_rng(i).permutation(9) for i in range(2)])

    @jax.jit
    def both(params):
        return model.apply({"params": params}, images), model.apply({"params": params}, images, keep=order)

    tokens, permuted = map(np.asarray, both(params))
    np.testing.assert_allclose(permuted, np.take_along_axis(tokens, order[:, :, None], axis=1), atol=1e-5)


def test_scanned_and_rematerialised_blocks_compute_what_unrolled_blocks_do():
    images = images_of(12, 12)
    unrolled = VisionTransformer(**EVERYTHING)
    scanned = VisionTransformer(**EVERYTHING, scan=True, remat="full")
    params = random_params(scanned, images)

    def value_and_gradient(model, params):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, images)))))(params)

    value, gradient = value_and_gradient(unrolled, unstack_blocks(params))
    scanned_value, scanned_gradient = value_and_gradient(scanned, params)
    np.testing.assert_allclose(value, scanned_value, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), gradient, unstack_blocks(scanned_gradient)
    )


def test_bfloat16_stays_finite_and_near_float32_and_returns_float32():
    images = images_of(12, 12)
    params = random_params(VisionTransformer(**EVERYTHING), images)
    apply = jax.jit(lambda model, params: model.apply({"params": params}, images), static_argnums=0)
    exact = apply(VisionTransformer(**EVERYTHING), params)
    rounded = apply(VisionTransformer(**EVERYTHING, dtype=jnp.bfloat16), params)
    assert rounded.dtype == jnp.float32
    assert np.isfinite(rounded).all()
    assert np.abs(exact - rounded).max() < 0.15
    assert np.abs(exact - rounded).max() > 0  # the matrix products did run in bfloat16


def test_fixed_positions_start_at_the_sine_cosine_table_and_get_no_gradient():
    model, images = VisionTransformer(**TINY, positions="sincos"), images_of(12, 12)
    # What is not returned is not compiled.
    start = jax.jit(lambda key: nn.unbox(model.init(key, images))["params"]["embedding"]["position_embedding"])
    table, params = np.asarray(start(jax.random.key(0))), random_params(model, images)
    np.testing.assert_array_equal(table, sincos_table(3, 16, class_token=True))
    assert not table[0].any()
    # Patch (row 1, column 2), first frequency: columns come first, sines before cosines.
    np.testing.assert_allclose(table[1 + 5, [0, 4, 8, 12]], [np.sin(2), np.cos(2), np.sin(1), np.cos(1)], rtol=1e-6)
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, images))))
    gradient = jax.jit(lambda p: gradient(p)["embedding"])(params)
    assert not gradient["position_embedding"].any()
    assert gradient["patch"]["kernel"].any()


@pytest.mark.parametrize("images", [images_of(12, 13), images_of(10, 12)])
def test_images_that_do_not_divide_into_patches_are_an_error(images):
    with pytest.raises(ValueError, match="multiple of 4"):
        jax.eval_shape(VisionTransformer(**TINY).init, jax.random.key(0), images)


@pytest.mark.parametrize("field", ["activation", "positions"])
def test_an_unknown_choice_is_an_error_that_names_the_field(field):
    with pytest.raises(ValueError, match=f"{field}='other'"):
        jax.eval_shape(VisionTransformer(**TINY, **{field: "other"}).init, jax.random.key(0), images_of(12, 12))


@pytest.mark.parametrize(
    ("name", "millions"),
    # As published: DINOv2 21/86/300/1100, SigLIP 2 vision towers 93/428 with pooling heads, MAE 86/303.
    [
        ("dinov2_s", (21, 23)),
        ("dinov2_b", (85, 88)),
        ("dinov2_l", (300, 306)),
        ("dinov2_g", (1100, 1140)),
        ("siglip2_b", (85, 87)),
        ("siglip2_so400m", (410, 415)),
        ("siglip2_so400m_14", (410, 415)),
        ("webssl_300m", (302, 306)),
        ("mae_b", (85, 87)),
        ("mae_l", (302, 305)),
    ],
)
def test_published_encoders_have_their_published_size(name, millions):
    encoder = PRETRAINED[name]
    model = VisionTransformer(**encoder.architecture, scan=True)
    image = jax.ShapeDtypeStruct((1, encoder.input_size, encoder.input_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert millions[0] <= count / 1e6 <= millions[1]
