"""The step that every loss is trained by, beside the same written out."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from rae_jax.objectives.objective import single_network, stage_key


def a_train_section(**fields):
    train = base.train(transform="none")
    train.ema_decay = 0.75
    train.optimizer.update(learning_rate=0.1, final_learning_rate=0.1, beta1=0.8, beta2=0.9, epsilon=1e-3)
    train.optimizer.update(clip_norm=0.0)
    train.update(fields)
    return train


def test_steps_are_adams_on_each_steps_own_draws_and_the_average_is_of_the_new_parameters():
    key = jax.random.key(9)

    def loss(params, frozen, batch, step_key):
        noise = jax.random.normal(step_key, (3,))
        return jnp.sum(frozen["scale"] * params["w"] * (batch["x"].mean(0) + noise)), {"noise": noise[0]}

    start, scale = np.array([1.0, -2.0, 3.0], np.float32), np.array([2.0, -1.0, 0.5], np.float32)
    objective = single_network(
        model_init=lambda key: {"w": jnp.asarray(start)}, loss=loss, train=a_train_section(more_ema_decays=(0.5,)),
        key=key, frozen={},
    )  # fmt: skip
    batch = {"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}
    state = objective.init(jax.random.key(0), batch).replace(frozen={"scale": scale})
    np.testing.assert_array_equal(state.ema_params["w"], start)
    step = jax.jit(objective.train_step)

    w, average, shorter, first, second = start, start, start, np.zeros(3), np.zeros(3)
    for number in range(3):
        state, metrics = step(state, batch)
        noise = np.asarray(jax.random.normal(jax.random.fold_in(key, number), (3,)))
        gradient = scale * (batch["x"].mean(0) + noise)
        np.testing.assert_allclose(metrics["loss"], np.sum(w * gradient), rtol=1e-4)
        np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-5)
        assert metrics["noise"] == noise[0] and metrics["learning_rate"] == np.float32(0.1)
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        unbiased = first / (1 - 0.8 ** (number + 1)), second / (1 - 0.9 ** (number + 1))
        w = w - 0.1 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-3)
        average, shorter = 0.75 * average + 0.25 * w, 0.5 * shorter + 0.5 * w
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-4)
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-4)
        np.testing.assert_allclose(state.more_ema["0.5"]["w"], shorter, rtol=1e-4)
    assert int(state.step) == 3


def test_a_batch_in_parts_gives_the_gradient_of_the_whole():
    def loss(params, frozen, batch, step_key):
        return jnp.mean(params["w"] * batch["x"] ** 2), {}

    batch = {"x": np.arange(6, dtype=np.float32)}
    norms = []
    for pieces in (1, 3):
        objective = single_network(
            model_init=lambda key: {"w": jnp.ones(())}, loss=loss, train=a_train_section(gradient_accumulation=pieces),
            key=jax.random.key(0), frozen={},
        )  # fmt: skip
        _, metrics = jax.jit(objective.train_step)(objective.init(jax.random.key(0), batch), batch)
        norms.append(float(metrics["gradient_norm"]))
    np.testing.assert_allclose(norms, np.mean(np.arange(6) ** 2), rtol=1e-6)


def test_stages_and_seeds_have_keys_of_their_own():
    keys = {
        tuple(np.asarray(jax.random.key_data(stage_key(seed, stage))))
        for seed in (0, 1) for stage in ("flow", "decoder")
    }  # fmt: skip
    assert len(keys) == 4
