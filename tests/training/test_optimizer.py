import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import cases
from ml_collections import ConfigDict

from rae_jax.training.optimizer import learning_rate_schedule, make_optimizer
from rae_jax.training.sharding import unbox
from rae_jax.training.state import update_ema


@cases("schedule")
def test_learning_rates_equal_the_released_schedules(case):
    for call in case.calls("build_scheduler"):
        scheduler, per_epoch = call.inputs["config"]["scheduler"], call.inputs["steps_per_epoch"]
        schedule = learning_rate_schedule(
            scheduler["base_lr"],
            final=scheduler["final_lr"],
            warmup_steps=scheduler["warmup_epochs"] * per_epoch,
            decay_end_step=scheduler["decay_end_epoch"] * per_epoch,
            shape=scheduler["type"],
            warmup_from_zero=scheduler["warmup_from_zero"],
        )
        (expected,) = call.outputs.values()
        case.assert_close(jax.jit(jax.vmap(schedule))(np.arange(call.inputs["steps"])), expected)


@cases("schedule")
def test_ema_equals_the_released_update(case):
    call = case.call("update_ema")
    ema, averages, update = call.inputs["start"], [], jax.jit(update_ema)
    for params in call.inputs["params per step"]:
        ema = update(ema, params, call.inputs["decay"])
        averages.append(ema)
    case.assert_close(np.stack(averages), call.outputs["ema per step"], atol=case.noted("for the rest"))


def test_parameters_of_a_group_have_its_optimizer_and_are_clipped_with_the_others():
    fields = dict(
        name="adamw", learning_rate=0.1, final_learning_rate=0.0, warmup_steps=0, decay_end_step=0, shape="constant",
        warmup_from_zero=False, clip_norm=1.0, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0,
    )  # fmt: skip
    main, head = ConfigDict(fields), ConfigDict(fields | {"learning_rate": 1.0, "beta2": 0.95})
    ones, zeros = np.ones(3, np.float32), np.zeros(2, np.float32)
    params = {"a": {"kernel": ones}, "b": {"kernel": ones, "bias": zeros}}
    optimizer, schedule = make_optimizer(main, {"head": head}, lambda path: "head" if path[0] == "b" else "")
    alone = {"a": make_optimizer(main)[0], "b": make_optimizer(head)[0]}

    @jax.jit
    def updates_of(gradients, clipped):
        state, states, found = optimizer.init(params), {name: alone[name].init(params[name]) for name in params}, []
        for each, ours in zip(gradients, clipped, strict=True):
            updates, state = optimizer.update(each, state, params)
            expected = {}
            for name in params:
                expected[name], states[name] = alone[name].update(ours[name], states[name], params[name])
            found.append((updates, expected))
        return found

    gradients = [jax.tree.map(lambda x, i=i: np.full_like(x, 3 + i), params) for i in range(3)]
    clipped = [jax.tree.map(lambda g, i=i: g / np.float32((3 + i) * 8**0.5), each) for i, each in enumerate(gradients)]
    for updates, expected in updates_of(gradients, clipped):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), updates, expected)
    assert float(schedule(0)) == pytest.approx(0.1)


@cases("schedule")
def test_adamw_with_clipping_equals_torch(case):
    call = case.call("AdamW with clip_grad_norm .*")
    beta1, beta2 = call.inputs["betas"]
    optimizer, _ = make_optimizer(
        ConfigDict(
            dict(
                name="adamw", learning_rate=call.inputs["lr"], final_learning_rate=0.0, warmup_steps=0,
                decay_end_step=0, shape="constant", warmup_from_zero=False, clip_norm=float(call.function.split()[-1]),
                beta1=beta1, beta2=beta2, epsilon=call.inputs["eps"], weight_decay=call.inputs["weight_decay"],
            )
        )
    )  # fmt: skip
    params = {"kernel": call.inputs["start"]}

    @jax.jit
    def step(gradient, state, params):
        updates, state = optimizer.update({"kernel": gradient}, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradient)

    state, path, norms = jax.jit(optimizer.init)(params), [], []
    for gradient in call.inputs["gradients per step"]:
        params, state, norm = step(gradient, state, params)
        norms.append(norm)
        path.append(params["kernel"])
    for actual, expected in ((norms, "norm before clipping"), (path, "params per step")):
        case.assert_close(np.stack(actual), call.outputs[expected], atol=case.noted("for the rest"))


@pytest.mark.parametrize("boxed", [False, True])
def test_weight_decay_acts_on_kernels_alone(boxed):
    optimizer, _ = make_optimizer(
        ConfigDict(
            dict(
                name="adamw", learning_rate=0.1, final_learning_rate=0.0, warmup_steps=0, decay_end_step=0,
                shape="constant", warmup_from_zero=False, clip_norm=0.0, beta1=0.9, beta2=0.95, epsilon=1e-8,
                weight_decay=0.5,
            )
        )
    )  # fmt: skip
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones((3, 2), np.float32)}  # of three layers, scanned
    if boxed:
        params = jax.tree.map(lambda x: nn.LogicallyPartitioned(x, (None, None)), params)
    update = jax.jit(lambda p: optimizer.update(jax.tree.map(jnp.zeros_like, p), optimizer.init(p), p)[0])
    updates = unbox(update(params))
    np.testing.assert_allclose(updates["kernel"], np.full((2, 2), -0.05), rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], np.zeros((3, 2)))


def test_a_schedule_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="linear"):
        learning_rate_schedule(1.0, final=0, warmup_steps=0, decay_end_step=1, shape="linaer", warmup_from_zero=False)
    with pytest.raises(ValueError, match="warm-up"):
        learning_rate_schedule(1.0, final=0, warmup_steps=9, decay_end_step=5, shape="cosine", warmup_from_zero=True)
