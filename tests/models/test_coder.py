"""The coder's states, and the module that walks between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from rae_jax.models.coder import (
    SCALES,
    RectifiedCoder,
    fold,
    image_of,
    image_state,
    latent_state,
    pooled_latent,
    unfold,
)

RNG = np.random.default_rng(0)
STABLE_DIFFUSIONS_DECODER = 49_490_179  # parameters of the published one; its autoencoder has 83,653,863
TINY = {"latent_channels": 4, "scale": 4, "channels": (8, 8, 8), "blocks_per_level": 1, "num_groups": 4}


def latents(channels: int, h: int = 2, w: int = 3) -> np.ndarray:
    return RNG.normal(size=(2, h, w, channels)).astype(np.float32)


def test_the_images_state_is_the_image_in_minus_one_to_one_with_further_channels_at_one_half():
    images = RNG.random((2, 4, 6, 3), np.float32)
    state = image_state(images, 5)
    np.testing.assert_allclose(state[..., :3], 2 * images - 1, rtol=1e-6)
    assert (np.asarray(state[..., 3:]) == 0.5).all()
    np.testing.assert_allclose(image_of(state), images, atol=1e-6)


def test_the_latents_state_repeats_each_position_and_pads_with_one_half():
    z = latents(3)
    state = latent_state(z, scale=2, state_channels=4)
    np.testing.assert_array_equal(state[..., :3], np.repeat(np.repeat(z, 2, axis=1), 2, axis=2))
    assert (np.asarray(state[..., 3]) == 0.5).all()


@pytest.mark.parametrize("channels, scale", [(4, 8), (3, 2), (4, 1), (16, 16), (32, 16), (5, 2)])
def test_average_pooling_gives_back_every_latent(channels, scale):
    z = np.round(64 * latents(channels)) / 64  # sums of so few digits are exact, in any order
    state = jax.jit(latent_state, static_argnums=(1, 2))(z, scale, 4)
    assert state.shape == (2, 2 * scale, 3 * scale, 4)
    pooled = jax.jit(pooled_latent, static_argnums=(1, 2))
    np.testing.assert_array_equal(pooled(state, scale, channels), z)


def test_a_latent_with_more_channels_than_the_state_lies_side_by_side():
    z = latents(6, 1, 1)
    state = np.asarray(latent_state(z, scale=2, state_channels=4))
    np.testing.assert_array_equal(state[0, 0, 0], z[0, 0, 0, :4])
    np.testing.assert_array_equal(state[0, 0, 1], [*z[0, 0, 0, 4:], 0.5, 0.5])
    assert (state[0, 1] == 0.5).all()


def test_a_latent_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"does not fit into 4 state channels; use at least 8"):
        latent_state(latents(32), scale=2, state_channels=4)


def test_the_field_depends_on_state_and_time_and_on_the_place_only_if_it_is_told():
    tiny = TINY | {"middle_attention": False}
    told, untold = RectifiedCoder(**tiny, positions=True), RectifiedCoder(**tiny)
    state, t = np.zeros((2, 16, 16, 4), np.float32), np.array([0.0, 0.75], np.float32)
    params = random_params(told, state, t)
    velocity = jax.jit(told.apply, static_argnames="method")
    v = np.asarray(velocity({"params": params}, state, t, method="velocity"))
    assert v.shape == state.shape and np.abs(v[0] - v[1]).max() > 1e-3
    assert np.abs(velocity({"params": params}, state + 0.1, t, method="velocity") - v).max() > 1e-3

    kernel = params["field"]["conv_in"]["kernel"]  # the state's 4 x 4 pixels of 4 channels, the time, the place
    assert kernel.shape[2] == 64 + 1 + 2
    params["field"]["conv_in"]["kernel"] = kernel[:, :, :-2]
    without = jax.jit(untold.apply, static_argnames="method")({"params": params}, state, t, method="velocity")
    assert np.abs(without - v).max() > 1e-3
    params["field"]["conv_in"]["kernel"] = np.concatenate([kernel[:, :, :-2], 0 * kernel[:, :, -2:]], axis=2)
    np.testing.assert_allclose(velocity({"params": params}, state, t, method="velocity"), without, atol=1e-5)


def test_a_field_that_makes_patches_gives_every_pixel_a_value_of_its_own():
    assert np.array_equal(unfold(fold(x := latents(5, 4, 8), 2), 2), x)
    model = RectifiedCoder(**TINY | {"channels": (8, 8), "middle_attention": False}, patch_size=2)
    state, t = latents(4, 8, 4), np.zeros(2, np.float32)
    params = random_params(model, state, t)
    assert params["field"]["conv_in"]["kernel"].shape[2] == 4 * 4 * 4 + 1
    v = np.asarray(jax.jit(model.apply, static_argnames="method")({"params": params}, state, t, method="velocity"))
    assert v.shape == state.shape and len(np.unique(v[0, :2, :2].round(5))) == 16


def test_the_learned_projector_starts_as_average_pooling_and_is_learned():
    for channels in (4, 7):
        small = TINY | {"latent_channels": channels, "channels": (4,), "middle_attention": False}
        learned, pooling = RectifiedCoder(**small), RectifiedCoder(**small, learned_projector=False)
        state = RNG.normal(size=(2, 8, 8, 4)).astype(np.float32)

        def both(key, learned=learned, pooling=pooling, state=state):
            params = learned.init(key, state, jnp.zeros(2))["params"]
            projected = learned.apply({"params": params}, state, method="project")
            return params["projector"]["kernel"].value, projected, pooling.apply({}, state, method="project")

        kernel, projected, pooled = jax.jit(both)(jax.random.key(0))
        assert kernel.shape == (64, channels)
        np.testing.assert_allclose(projected, pooled, atol=1e-5)


def parameters_of_scale(name):
    model = RectifiedCoder(latent_channels=4, scale=8, **SCALES[name])
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 4)), jnp.zeros(1))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(("name", "share"), [("0.1x", 0.105), ("0.2x", 0.202), ("0.3x", 0.314), ("1x", 1.024)])
def test_a_named_scale_has_about_that_share_of_stable_diffusions_decoder(name, share):
    assert parameters_of_scale(name) / STABLE_DIFFUSIONS_DECODER == pytest.approx(share, abs=5e-4)


def test_the_full_scale_coder_is_stable_diffusions_decoder_but_for_its_ends_and_saves_39_percent_of_the_autoencoder():
    count = parameters_of_scale("1x")
    narrow_ends = (9 * 4 + 1) * 512 + (9 * 128 + 1) * 3  # convolutions of 3 x 3 from a latent, and to an image
    ends = (9 * (8 * 8 * 4 + 1) + 1) * 512 + (9 * 128 + 1) * 4  # from the folded state with its time, and to a state
    projector = (8 * 8 * 4 + 1) * 4
    assert count == STABLE_DIFFUSIONS_DECODER - narrow_ends + ends + projector
    # The paper says about 41 %, which is the share of the autoencoder's own encoder: 34.2 of 83.7 million.
    assert 1 - count / 83_653_863 == pytest.approx(0.3944, abs=5e-5)


def test_states_that_cannot_be_folded_are_refused():
    with pytest.raises(ValueError, match="takes 4 channels and sides that are multiples of 4"):
        RectifiedCoder(**TINY).init(jax.random.key(0), jnp.zeros((1, 6, 8, 4)), jnp.zeros(1))
