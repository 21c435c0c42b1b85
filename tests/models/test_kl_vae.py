"""The convolutional KL-VAE against the golden outputs, against diffusers in PyTorch, and against itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, nhwc, tokens
from random_params import random_params

from rae_jax.interop.diffusers_kl import import_kl_vae
from rae_jax.models.kl_vae import KLVAE, RPIAE_CONV_DECODER, STABLE_DIFFUSION, ConvDecoder, ResidualBlock
from rae_jax.training.sharding import make_mesh, shardings_of

TINY = {"channels": (8, 16), "latent_channels": 3, "blocks_per_level": 1, "num_groups": 4}


def images_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(2, height, width, 3)).astype(np.float32)


def compiled(model: KLVAE):
    return jax.jit(model.apply, static_argnames="method")


@cases("kl_vae")
def test_posterior_and_images_equal_the_reference(case):
    architecture, params = import_kl_vae(case.weights, case.constructor["norm_num_groups"])
    apply, call = compiled(KLVAE(**architecture)), case.call("encode")
    # Each half is given no more than the parameters that it uses.
    encoder = {"params": {name: params[name] for name in ("encoder", "quant_linear") if name in params}}
    decoder = {"params": {name: params[name] for name in ("decoder", "post_quant_linear") if name in params}}
    posterior = apply(encoder, (nhwc(call.inputs["x"]) + 1) / 2, method="encode")
    for moment in ("mean", "logvar", "std"):
        case.assert_close(getattr(posterior, moment), tokens(call.outputs[moment]))
    case.assert_close(posterior.kl(), call.outputs["kl"])
    for call in case.calls("decode"):
        decoded = apply(decoder, tokens(call.inputs["z"]), method="decode")
        case.assert_close(decoded * 2 - 1, nhwc(call.outputs["image"]))


DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


@pytest.mark.parametrize(
    "config",
    [
        # Three levels, attention at the lowest on both sides, no linear maps around the latent.
        {
            "block_out_channels": (8, 8, 16),
            "layers_per_block": 2,
            "down_block_types": (DOWN, DOWN, f"Attn{DOWN}"),
            "up_block_types": (f"Attn{UP}", UP, UP),
            "latent_channels": 5,
            "norm_num_groups": 4,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        # Attention at different levels of the two halves, none in the middle, other numbers of channels.
        {
            "block_out_channels": (16, 8),
            "layers_per_block": 1,
            "down_block_types": (f"Attn{DOWN}", DOWN),
            "up_block_types": (f"Attn{UP}", UP),
            "mid_block_add_attention": False,
            "in_channels": 4,
            "out_channels": 2,
            "norm_num_groups": 8,
        },
        # One level: nothing is resized.
        {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 2, "use_quant_conv": False},
    ],
)
def test_it_equals_diffusers_for_every_architecture(config):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    config = {"down_block_types": (DOWN,), "up_block_types": (UP,), **config}
    reference = diffusers.AutoencoderKL(**config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(offset + 0.2 * torch.randn(parameter.shape, generator=generator))
    tensors = {name: value.numpy() for name, value in reference.state_dict().items()}
    architecture, params = import_kl_vae(tensors, config["norm_num_groups"])
    apply = compiled(KLVAE(**architecture))

    images = np.random.default_rng(0).normal(size=(2, 12, 8, config.get("in_channels", 3))).astype(np.float32)
    with torch.no_grad():
        expected = reference.encode(torch.tensor(images).permute(0, 3, 1, 2)).latent_dist
        decoded = reference.decode(expected.mean).sample
    posterior = apply({"params": params}, (images + 1) / 2, method="encode")
    np.testing.assert_allclose(posterior.mean, tokens(expected.mean.numpy()), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(posterior.logvar, tokens(expected.logvar.numpy()), atol=1e-4, rtol=1e-4)
    # The images are not square, so the latent is handed over as a feature map.
    actual = apply({"params": params}, nhwc(expected.mean.numpy()), method="decode")
    np.testing.assert_allclose(actual * 2 - 1, nhwc(decoded.numpy()), atol=1e-4, rtol=1e-4)


def boxed_count(model, *arguments) -> int:
    """Number of parameters, each of which has a place on the mesh."""
    boxed = jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]
    shardings_of(boxed, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))
    assert all(hasattr(leaf, "names") for leaf in leaves)
    return sum(leaf.value.size for leaf in leaves)


def test_the_model_of_stable_diffusion_has_its_published_size():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    assert boxed_count(KLVAE(**STABLE_DIFFUSION), image) == 83_653_863


def test_the_decoder_alone_makes_images_of_tokens_with_as_many_parameters_as_diffusers_has():
    torch, vae = pytest.importorskip("torch"), pytest.importorskip("diffusers.models.autoencoders.vae")
    model = ConvDecoder(**RPIAE_CONV_DECODER)
    z = jax.ShapeDtypeStruct((1, 256, 768), jnp.float32)
    assert jax.eval_shape(model.init_with_output, jax.random.key(0), z)[0].shape == (1, 256, 256, 3)
    with torch.device("meta"):
        reference = vae.Decoder(
            in_channels=768,
            up_block_types=(f"Attn{UP}", *[UP] * 4),
            block_out_channels=RPIAE_CONV_DECODER["channels"],
            layers_per_block=2,
        )
    assert boxed_count(model, z) == sum(parameter.numel() for parameter in reference.parameters())


def test_tokens_and_feature_maps_decode_alike():
    model = ConvDecoder(channels=(8,), blocks_per_level=1, num_groups=4)
    grid = np.random.default_rng(0).normal(size=(2, 3, 3, 5)).astype(np.float32)
    params = random_params(model, grid)
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(
        apply({"params": params}, grid.reshape(2, 9, 5)), apply({"params": params}, grid), atol=1e-6
    )


def test_shift_and_scaling_factor_move_the_latent_and_leave_the_reconstruction_alone():
    images, tiny = images_of(4, 4), {**TINY, "channels": (8,)}
    plain, scaled = KLVAE(**tiny), KLVAE(**tiny, scaling_factor=0.5, shift_factor=0.25)

    @jax.jit
    def both(params):
        return [(m.apply(params, images, method="encode"), m.apply(params, images)) for m in (plain, scaled)]

    (posterior, reconstruction), (other, of_scaled) = both({"params": random_params(plain, images)})
    np.testing.assert_allclose(other.mean, 0.5 * (posterior.mean - 0.25), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.std, 0.5 * posterior.std, rtol=1e-5)
    assert reconstruction.shape == images.shape
    np.testing.assert_allclose(of_scaled, reconstruction, atol=1e-5)


def test_bfloat16_stays_near_float32_and_returns_float32():
    images, tiny = images_of(4, 4), {**TINY, "channels": (8,)}
    params = {"params": random_params(KLVAE(**tiny), images)}
    exact = compiled(KLVAE(**tiny))(params, images)
    rounded = compiled(KLVAE(**tiny, dtype=jnp.bfloat16))(params, images)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.05
    # The last convolution is float32: its values are not those that bfloat16 can hold. All else is bfloat16.
    assert (rounded != rounded.astype(jnp.bfloat16)).mean() > 0.9
    block, x = ResidualBlock(8, num_groups=4, dtype=jnp.bfloat16), jnp.ones((1, 2, 2, 4), jnp.bfloat16)
    assert jax.eval_shape(block.init_with_output, jax.random.key(0), x)[0].dtype == jnp.bfloat16


def test_sizes_that_do_not_halve_and_tokens_of_no_square_are_errors():
    with pytest.raises(ValueError, match="9 x 8 cannot be halved 1 times; resize them to a multiple of 2"):
        jax.eval_shape(KLVAE(**TINY).init, jax.random.key(0), images_of(9, 8))
    with pytest.raises(ValueError, match="6 tokens are not a square grid"):
        jax.eval_shape(ConvDecoder(channels=(8,), num_groups=4).init, jax.random.key(0), np.zeros((1, 6, 3)))
