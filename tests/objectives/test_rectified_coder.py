"""The rectified coder's loss (RAC): each term written out from the field's velocities, in two steps each way.

Joint training with the KL-VAE is the sum of the two losses.
"""

import functools

import jax
import numpy as np
import pytest
from losses import assert_same_gradients, images_of, loss_of
from random_params import random_params

from configs import architectures, digits_rac
from rae_jax.models.coder import RectifiedCoder, fold
from rae_jax.models.kl_vae import KLVAE
from rae_jax.objectives import joint_coder
from rae_jax.objectives.kl_autoencoding import autoencoder_loss
from rae_jax.objectives.rectified_coder import coder_loss

WEIGHTS = {"path": 0.3, "latent": 2.0, "pixel": 0.7, "round_trip": 5.0, "mean_velocity": 11.0}
KEY = jax.random.key(5)


@functools.cache
def prepared():
    """A config of a coder of 2 x 2 pixels a latent, both models, their parameters, and images in [0, 1]."""
    config = digits_rac.get_config("tiny")
    config.teacher.model = architectures.kl_vae(
        channels=(4, 4), latent_channels=3, blocks_per_level=0, num_groups=2, middle_attention=False
    )
    config.coder.model = architectures.rectified_coder(
        channels=(4,), patch_size=4, blocks_per_level=0, num_groups=2, middle_attention=False
    )
    config.coder.num_steps, config.coder.random_times, config.coder.noise = 2, False, 0.0
    config.coder.update({f"{name}_weight": weight for name, weight in WEIGHTS.items()})
    teacher = KLVAE(**config.teacher.model.to_dict())
    coder = RectifiedCoder(latent_channels=3, scale=2, **config.coder.model.to_dict())
    images = images_of(2, 8)["image"] / np.float32(255)
    params = {
        "teacher": random_params(teacher, images, std=0.3),
        "coder": random_params(coder, np.zeros((2, 8, 8, 4), np.float32), np.zeros(2, np.float32), std=0.3),
    }
    return config, teacher, coder, params, images


def changed(**changes):
    config = prepared()[0].copy_and_resolve_references()
    config.coder.update(changes)
    return config


def loss_and_terms(**changes):
    _, _, _, params, images = prepared()
    config = changed(**changes)
    return jax.jit(coder_loss(config))(params["coder"], params["teacher"], images, KEY)


@functools.cache
def networks():
    """`encode(images)`, `decode(tokens)`, `field(s, t)`, and the field's derivative along `(ds, dt)`."""
    _, teacher, coder, params, _ = prepared()

    def field(s, t):
        return coder.apply({"params": params["coder"]}, s, t, method="velocity")

    return (
        jax.jit(lambda x: teacher.apply({"params": params["teacher"]}, x, method="encode").mean),
        jax.jit(lambda x: teacher.apply({"params": params["teacher"]}, x, method="decode")),
        jax.jit(field),
        jax.jit(lambda s, t, ds, dt: jax.jvp(field, (s, t), (ds, dt))[1]),
    )


def written_out(through_the_latent=True, middle_time=0.5, noise=0.0):
    """The terms in NumPy; only the two networks are the code's."""
    _, _, _, params, images = prepared()
    encode, decode, field, derivative_along = networks()
    down, up, again_noise = (
        noise * np.asarray(jax.random.normal(key, (2, 2, 8, 8, 4))) for key in jax.random.split(KEY, 4)[1:]
    )

    def v(state, t):
        return np.asarray(field(state.astype(np.float32), np.full(2, t, np.float32)))

    def enlarged(z):  # each latent on its 2 x 2 pixels, and the fourth channel at one half
        return np.pad(z.repeat(2, axis=1).repeat(2, axis=2), ((0, 0),) * 3 + ((0, 1),), constant_values=0.5)

    def step(state, t, dt, noise):
        return state + noise + dt * v(state + noise, t)

    def walk(state, noise):
        """The states after the first and after the second step."""
        middle = step(state, 0.0, middle_time, noise[0])
        return middle, step(middle, middle_time, 1 - middle_time, noise[1])

    z = np.asarray(encode(images)).reshape(2, 4, 4, 3)
    first = enlarged(z)
    last = np.pad(2 * images - 1, ((0, 0),) * 3 + ((0, 1),), constant_values=0.5)
    middle, end = walk(first, down)
    encoded = step(step(last, middle_time, middle_time - 1, up[0]), 0.0, -middle_time, up[1])
    projector = params["coder"]["projector"]
    latent = np.asarray(fold(encoded, 2)) @ projector["kernel"] + projector.get("bias", 0)
    decoded = np.asarray(decode(latent.reshape(2, 16, 3).astype(np.float32)))
    _, again = walk(enlarged(latent) if through_the_latent else encoded, again_noise)
    t = np.full(2, middle_time, np.float32)
    derivative = derivative_along(middle.astype(np.float32), t, (last - first).astype(np.float32), np.ones_like(t))
    velocities = [v(first, 0.0), v(middle, middle_time) + middle_time * np.asarray(derivative)]
    return {
        "reconstruction": np.mean((end - last) ** 2),
        "path": np.mean((middle - first - middle_time * (last - first)) ** 2),
        "mean_velocity": np.mean([(velocity - (last - first)) ** 2 for velocity in velocities]),
        "latent": np.mean((latent - z) ** 2),
        "pixel": 4 * np.mean((decoded - images) ** 2),
        "round_trip": np.mean((again - last) ** 2),
    }


@pytest.mark.parametrize("round_trip", ["latent", "state"])
def test_every_term_is_its_equation_and_the_loss_their_weighted_sum(round_trip):
    loss, terms = loss_and_terms(round_trip=round_trip)
    expected = written_out(round_trip == "latent")
    assert terms.keys() == expected.keys() and min(expected.values()) > 1e-3
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)
    total = expected["reconstruction"] + sum(weight * expected[name] for name, weight in WEIGHTS.items())
    np.testing.assert_allclose(loss, total, rtol=1e-4)


def test_a_term_of_weight_zero_is_left_out_and_the_others_stay():
    none = {f"{name}_weight": 0.0 for name in WEIGHTS}
    loss, terms = loss_and_terms(**none)
    assert terms.keys() == {"reconstruction", "path"}
    np.testing.assert_allclose(loss, written_out()["reconstruction"], rtol=1e-4)


def test_noise_joins_the_state_before_each_step_and_times_are_drawn_between_0_and_1():
    _, terms = loss_and_terms(noise=0.3, random_times=True)
    drawn = float(jax.random.uniform(jax.random.split(KEY, 4)[0], (1,))[0])
    expected = written_out(middle_time=drawn, noise=0.3)
    assert abs(drawn - 0.5) > 0.05
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)


# One step, and of the weighted terms those alone that the teacher can learn from: their gradients compile sooner.
SHORT = {"num_steps": 1, "path_weight": 0.0, "round_trip_weight": 0.0, "mean_velocity_weight": 0.0}


def test_trained_together_the_loss_is_the_sum_of_both_and_reaches_both_but_for_what_the_coder_aims_at(monkeypatch):
    _, _, _, params, images = prepared()
    config = changed(**SHORT)
    teacher_key, coder_key = jax.random.split(KEY)
    loss = loss_of(joint_coder, config, "joint_coder", monkeypatch)
    of_teacher, of_coder = autoencoder_loss(config), coder_loss(config)

    @jax.jit
    def together_and_apart(params, batch, images):
        of_both = jax.value_and_grad(loss, has_aux=True)(params, {}, batch, KEY)
        own = jax.value_and_grad(of_teacher, has_aux=True)(params["teacher"], images, teacher_key)
        coding = jax.value_and_grad(of_coder, (0, 1), has_aux=True)(
            params["coder"], params["teacher"], images, coder_key
        )
        return of_both, own, coding

    ((value, terms), gradients), own, ((coding, coder_terms), (to_coder, to_teacher)) = together_and_apart(
        params, images_of(2, 8), images
    )
    np.testing.assert_allclose(value, own[0][0] + coding, rtol=1e-5)
    assert terms.keys() == {"reconstruction", "kl"} | {f"coder_{name}" for name in coder_terms}
    assert_same_gradients(gradients["coder"], to_coder)
    assert_same_gradients(gradients["teacher"], jax.tree.map(np.add, own[1], to_teacher))
    assert max(float(np.abs(x).max()) for x in jax.tree.leaves(to_teacher["encoder"])) > 1e-4


def test_the_teachers_latent_does_not_come_to_the_coders():
    _, _, _, params, images = prepared()
    without, weighted = (coder_loss(changed(**SHORT | {"pixel_weight": 0.0, "latent_weight": w})) for w in (0.0, 3.0))

    @jax.jit
    def gradients(teacher):
        return [jax.grad(lambda p, f=f: f(params["coder"], p, images, KEY)[0])(teacher) for f in (without, weighted)]

    assert_same_gradients(*gradients(params["teacher"]))


def test_trained_together_are_these_two_and_no_others():
    config = changed()
    config.joint_coder.trains = ("coder",)
    with pytest.raises(ValueError, match=r"joint_coder\.trains=\('coder',\) is not teacher and coder"):
        joint_coder.make(config, "joint_coder")
