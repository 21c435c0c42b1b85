"""What the time derivative of MeanFlow distillation costs: the finite difference as made here, naively, and the JVP."""

import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from configs import digits as digits_config
from rae_jax.components.generators import flow_map as flow_map_network
from rae_jax.components.generators import velocity_network
from rae_jax.components.latent_spaces import latent_space
from rae_jax.flow.path import interpolate
from rae_jax.objectives import meanflow
from rae_jax.training import sharding

ROUNDS, BATCH_SIZE = 20, 64


def reproduce(workdir: Path, digits: Path) -> str:
    """The section; nothing is trained, so neither directory is used."""
    del workdir, digits
    compiled = {name: _compiled(derivative) for name, derivative in DERIVATIVES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(ROUNDS):  # in turn, so that what else the machine does meets them alike
        for name, (program, arguments) in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    memory = {name: program.memory_analysis().temp_size_in_bytes / 2**20 for name, (program, _) in compiled.items()}
    ours = next(iter(medians))
    rows = "\n".join(
        f"| {name} | {1000 * medians[name]:.0f} ms | {medians[name] / medians[ours]:.2f} | {memory[name]:.0f} MiB | "
        f"{memory[name] / memory[ours]:.2f} |"
        for name in medians
    )
    return f"""## The cost of MeanFlow's time derivative

`python -m tools.reproduce meanflow_cost` makes this section. Loss and gradients of one batch of MeanFlow distillation
with the network of `configs/digits.py`, the teacher's evaluation included, without encoder and optimizer: batch
{BATCH_SIZE}, float32, {jax.default_backend().upper()}, median of {ROUNDS} rounds in which the versions take turns.
Memory is what the compiler sets aside for intermediate values.

| derivative | time | ratio | memory | ratio |
|---|---|---|---|---|
{rows}
"""


def three_passes(
    flow_map: Any, params: Any, z: jax.Array, v: jax.Array, r: jax.Array, t: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`u` and `du/dt` by three separate evaluations, nothing stopped before the target is."""
    dt = 0.005
    after, before = (flow_map(params, z + d * v, r, t + d, labels) for d in (dt, -dt))
    return flow_map(params, z, r, t, labels), (after - before) / (2 * dt)


def one_pass_of_three(
    flow_map: Any, params: Any, z: jax.Array, v: jax.Array, r: jax.Array, t: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The same with all three in one batch, through which gradients go as a whole."""
    dt = 0.005
    u, after, before = jnp.split(
        flow_map(
            params,
            jnp.concatenate([z, z + dt * v, z - dt * v]),
            jnp.tile(r, 3),
            jnp.concatenate([t, t + dt, t - dt]),
            jnp.tile(labels, 3),
        ),
        3,
    )
    return u, (after - before) / (2 * dt)


DERIVATIVES = {
    "finite difference, as trained: the middle alone differentiated": lambda *a: meanflow.finite_difference(*a, 0.005),
    "`jax.jvp`": meanflow.exact_derivative,
    "finite difference, three separate passes": three_passes,
    "finite difference, one differentiated pass over all three": one_pass_of_three,
}


def _compiled(derivative: Any) -> tuple[Any, tuple[Any, ...]]:
    """Loss and gradients of one batch as an executable, and its arguments."""
    config = digits_config.get_config()
    teacher, student = velocity_network(config), flow_map_network(config)
    keys = jax.random.split(jax.random.key(0), 5)
    teacher_params = sharding.unbox(teacher.init(keys[0]))
    params = sharding.unbox(student.init(keys[1]))
    z, eps = (jax.random.normal(key, (BATCH_SIZE, *latent_space(config).shape)) for key in keys[2:4])
    r, t = jnp.sort(jax.random.uniform(keys[4], (2, BATCH_SIZE)), axis=0)
    labels = jnp.arange(BATCH_SIZE) % config.flow.num_classes

    def flow_map(params: Any, z: jax.Array, r: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        return student.apply(params, z, t, labels, r)

    def loss(params: Any, teacher_params: Any, z: jax.Array, eps: jax.Array) -> jax.Array:
        z_t = interpolate(z, eps, t)
        v = teacher.apply(teacher_params, z_t, t, labels)
        u, dudt = derivative(flow_map, params, z_t, v, r, t, labels)
        error = meanflow.squared_error(u, meanflow.target(v, dudt, r, t))
        return jnp.mean(meanflow.adaptive_loss(error, 1.0))

    arguments = (params, teacher_params, z, eps)
    return jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile(), arguments
