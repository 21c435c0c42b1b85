"""The whole losses of consistency mid-training and MeanFlow, written out from what the two networks say."""

import functools
import itertools

import jax
import numpy as np
import pytest
from losses import loss_of
from random_params import random_params

from configs import architectures, digits
from rae_jax.flow.times import sample_times
from rae_jax.models.lightning_dit import LightningDiT
from rae_jax.objectives import cmt, meanflow

KEY, LABELS, NULL = jax.random.key(8), np.array([3, 1, 4, 1], np.int32), np.full(4, 10, np.int32)
SHAPE, SHIFT = (4, 16, 16), 2.0  # latents of the digits, and the shift of times that their base below gives
RNG = np.random.default_rng(0)
Z, MEAN, VARIANCE = RNG.normal(size=SHAPE), RNG.normal(size=SHAPE[1:]), RNG.uniform(0.5, 2, SHAPE[1:])
Z, MEAN, VARIANCE = (x.astype(np.float32) for x in (Z, MEAN, VARIANCE))


def shifted(t):
    return SHIFT * t / (1 + (SHIFT - 1) * t)


def along(t):
    return np.asarray(t, np.float32)[:, None, None]


@functools.cache
def prepared():
    """A config, and the jitted teacher `(z, t, labels)` and flow map `(z, r, t, labels)` with their parameters."""
    config = digits.get_config("tiny")
    config.flow.family, config.flow.shift_base = "lightning_dit", 64
    config.flow.model = architectures.lightning_dit(width=8, depth=1, num_heads=2, rope=False)
    arguments = dict(grid_size=4, in_channels=16, num_classes=10, **config.flow.model.to_dict())
    teacher, student = LightningDiT(**arguments), LightningDiT(**arguments, flow_map=True)
    t = np.zeros(4, np.float32)
    params = {
        "teacher": random_params(teacher, Z, t, LABELS, std=0.3),
        "student": random_params(student, Z, t, LABELS, t, std=0.3),
    }
    apply = {"teacher": jax.jit(teacher.apply), "student": jax.jit(student.apply)}

    def velocity(z, t, labels):
        return np.asarray(apply["teacher"]({"params": params["teacher"]}, z, np.asarray(t, np.float32), labels))

    def flow_map(z, r, t, labels):
        r, t = np.asarray(r, np.float32), np.asarray(t, np.float32)
        return np.asarray(apply["student"]({"params": params["student"]}, z, t, labels, r))

    return config, params, velocity, flow_map


@pytest.mark.parametrize(("dropout", "again"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_mid_training_regresses_every_jump_of_the_teachers_trajectory_asked_for_the_same(dropout, again, monkeypatch):
    config, params, velocity, flow_map = prepared()
    config.mid_training.update(
        trajectory_steps=2, pairs=0, label_dropout=dropout, label_dropout_network=again, time_labels="true"
    )
    loss = loss_of(cmt, config, "mid_training", monkeypatch)
    value, _ = loss(params["student"], {"flow": params["teacher"]}, {"label": LABELS}, KEY)

    labels, times = NULL if dropout else LABELS, shifted(np.array([1.0, 0.5, 0.0], np.float32))
    states = [np.asarray(jax.random.normal(jax.random.split(KEY, 3)[0], SHAPE))]
    for t, t_next in itertools.pairwise(times):
        states.append(states[-1] - (t - t_next) * velocity(states[-1], np.full(4, t), labels))
    errors = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        u = flow_map(states[i], np.full(4, times[j]), np.full(4, times[i]), NULL if again else labels)
        errors.append(np.mean((u - (states[i] - states[j]) / (times[i] - times[j])) ** 2))
    np.testing.assert_allclose(value, np.mean(errors), rtol=1e-3)


@pytest.mark.parametrize(
    ("eta", "dropout", "again"), [(0.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.3, 1.0, 0.0), (0.3, 0.0, 1.0)]
)
def test_meanflow_regresses_the_velocity_less_what_the_mean_velocity_changes_by_on_the_way(
    eta, dropout, again, monkeypatch
):
    config, params, velocity, flow_map = prepared()
    config.flow_map.update(
        eta=eta, dt=0.02, unequal_share=0.5, adaptive_power=0.5, label_dropout=dropout, label_dropout_network=again
    )
    frozen = {"flow": params["teacher"], "stats": {"mean": MEAN, "variance": VARIANCE}}
    loss = loss_of(meanflow, config, "flow_map", monkeypatch)
    value, metrics = loss(params["student"], frozen, {"latent": Z, "label": LABELS}, KEY)

    time_key, equal_key, noise_key, _ = jax.random.split(KEY, 4)
    times = shifted(0.999 * np.asarray(jax.random.uniform(time_key, (4, 2))))
    t = times.max(axis=1)
    equal = np.asarray(jax.random.uniform(equal_key, (4,))) < 0.5
    r = np.where(equal, t, times.min(axis=1))
    assert 0 < equal.sum() < 4
    labels, eps = NULL if dropout else LABELS, np.asarray(jax.random.normal(noise_key, SHAPE))
    z = (Z - MEAN) / np.sqrt(VARIANCE + 1e-5)
    z_t, v = (1 - along(t)) * z + along(t) * eps, eps - z
    v = (1 - eta) * v + eta * velocity(z_t, t, labels)
    labels = NULL if again else labels  # of the student alone
    after = flow_map(z_t + 0.02 * v, r, t + 0.02, labels)
    before = flow_map(z_t - 0.02 * v, r, t - 0.02, labels)
    target = v - along(t - r) * (after - before) / 0.04
    error = np.sum((flow_map(z_t, r, t, labels) - target) ** 2, axis=(1, 2))
    np.testing.assert_allclose(metrics["mean_squared_error"], error.mean() / 256, rtol=1e-3)
    np.testing.assert_allclose(value, np.mean(error**2 / np.sqrt(error**2 + 1e-3)), rtol=1e-3)


LARGEST = 4.0  # scale of guidance


@functools.cache
def guided():
    """As `prepared`, with a flow map `(z, r, t, labels, guidance)` that is told scale and interval."""
    config, params, velocity, _ = prepared()
    config = config.copy_and_resolve_references()
    config.flow_map.update(guided=True, largest_guidance_scale=LARGEST)
    arguments = dict(grid_size=4, in_channels=16, num_classes=10, **config.flow.model.to_dict())
    model, t = LightningDiT(**arguments, flow_map=True, guided=True), np.zeros(4, np.float32)
    student = random_params(model, Z, t, LABELS, t, np.ones((4, 3), np.float32), std=0.3)
    apply = jax.jit(model.apply)

    def flow_map(z, r, t, labels, told):
        r, t, told = (np.asarray(x, np.float32) for x in (r, t, told))
        return np.asarray(apply({"params": student}, z, t, labels, r, told))

    return config, params | {"student": student}, velocity, flow_map


def drawn(key):
    """Guidance `[4, 3]`, written out."""
    scale, t_min, t_max = np.asarray(jax.random.uniform(key, (3, 4)))
    return np.stack([LARGEST**scale, t_min / 2, (1 + t_max) / 2], axis=1)


@pytest.mark.parametrize(("eta", "tangent"), [(0.0, "own"), (0.3, "target"), (1.0, "target")])
def test_a_guided_flow_map_learns_the_guided_velocity_inside_its_interval(eta, tangent, monkeypatch):
    config, params, velocity, flow_map = guided()
    config.flow_map.update(
        eta=eta, tangent=tangent, dt=0.02, unequal_share=0.75, adaptive_power=0.0, label_dropout=0.5,
        label_dropout_network=0.0, time_distribution="logit_normal", logit_normal_mean=-0.4,
    )  # fmt: skip
    frozen = {"flow": params["teacher"], "stats": {"mean": MEAN, "variance": VARIANCE}}
    loss = loss_of(meanflow, config, "flow_map", monkeypatch)
    key = jax.random.key(21)  # by which some labels are dropped, and some samples are in their intervals
    value, metrics = loss(params["student"], frozen, {"latent": Z, "label": LABELS}, key)

    time_key, equal_key, noise_key, drop_key, _, guidance_key = jax.random.split(key, 6)
    times = np.asarray(sample_times(time_key, 8, "logit_normal", mean=-0.4, shift=SHIFT)).reshape(4, 2)
    t, equal = times.max(axis=1), np.asarray(jax.random.uniform(equal_key, (4,))) < 0.25
    r = np.where(equal, t, times.min(axis=1))
    told = drawn(guidance_key)
    told[equal, 1:] = 0, 1
    dropped = np.asarray(jax.random.bernoulli(drop_key, 0.5, (4,)))
    inside = (t >= told[:, 1]) & (t <= told[:, 2]) & ~dropped
    assert 0 < inside.sum() < 4 and 0 < dropped.sum() < 4 and (inside & ~equal).any()
    scale, labels = np.where(inside, told[:, 0], 1), np.where(dropped, NULL, LABELS)
    eps = np.asarray(jax.random.normal(noise_key, SHAPE))
    z = (Z - MEAN) / np.sqrt(VARIANCE + 1e-5)
    z_t, v = (1 - along(t)) * z + along(t) * eps, eps - z
    everywhere = np.stack([scale, 0 * t, 1 + 0 * t], axis=1)
    own = flow_map(z_t, t, t, labels, everywhere)
    own_null = flow_map(z_t, t, t, NULL, [[1, 0, 1]] * 4)
    v = v + (1 - 1 / along(scale)) * (own - own_null)
    v_null = velocity(z_t, t, NULL)
    v = (1 - eta) * v + eta * (v_null + along(scale) * (velocity(z_t, t, labels) - v_null))
    direction = own if tangent == "own" else v
    after = flow_map(z_t + 0.02 * direction, r, t + 0.02, labels, told)
    before = flow_map(z_t - 0.02 * direction, r, t - 0.02, labels, told)
    target = v - along(t - r) * (after - before) / 0.04
    error = np.sum((flow_map(z_t, r, t, labels, told) - target) ** 2, axis=(1, 2))
    np.testing.assert_allclose(metrics["mean_squared_error"], error.mean() / 256, rtol=1e-3)
    np.testing.assert_allclose(value, np.mean(error**2), rtol=1e-3)


def test_mid_training_of_a_guided_flow_map_has_trajectories_of_the_guided_teacher(monkeypatch):
    config, params, velocity, flow_map = guided()
    config.mid_training.update(
        trajectory_steps=2, pairs=0, label_dropout=0.0, label_dropout_network=0.0, time_labels="true"
    )
    loss = loss_of(cmt, config, "mid_training", monkeypatch)
    value, _ = loss(params["student"], {"flow": params["teacher"]}, {"label": LABELS}, KEY)

    noise_key, *_, guidance_key = jax.random.split(KEY, 5)
    told, times = drawn(guidance_key), shifted(np.array([1.0, 0.5, 0.0], np.float32))
    states = [np.asarray(jax.random.normal(noise_key, SHAPE))]
    for t, t_next in itertools.pairwise(times):
        scale = along(np.where((t >= told[:, 1]) & (t <= told[:, 2]), told[:, 0], 1))
        v, v_null = (velocity(states[-1], np.full(4, t), labels) for labels in (LABELS, NULL))
        states.append(states[-1] - (t - t_next) * (v_null + scale * (v - v_null)))
    errors = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        u = flow_map(states[i], np.full(4, times[j]), np.full(4, times[i]), LABELS, told)
        errors.append(np.mean((u - (states[i] - states[j]) / (times[i] - times[j])) ** 2))
    np.testing.assert_allclose(value, np.mean(errors), rtol=1e-3)
