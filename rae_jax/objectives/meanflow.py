"""MeanFlow: a flow map learns the mean velocity from its own time derivative (Geng et al., 2025; MF-RAE, Section 3).

The mean velocity u over [r, t] and the velocity v at t satisfy `u = v - (t - r) du/dt`, where the derivative is total,
along the path: `z_t` moves with v, t with 1, and r stays. The flow map is regressed on the right-hand side,

    || u(z_t, r, t) - sg[v - (t - r) du/dt] ||^2,    v = (1 - eta) (eps - z) + eta v_teacher(z_t, t),

with MF-RAE's mixture of Proposition 3.1: eta = 1 is MeanFlow distillation (MFD), eta = 0 MeanFlow training (MFT).

Two things are iMF's (Geng et al., "Improved Mean Flows", 2025). z_t may move with the flow map's own velocity
`u(z_t, t, t)` instead of v, which without a teacher is that of one pair of data and noise (`tangent="own"`). And a
guided flow map has classifier-free guidance among its inputs, a scale w and an interval of times [t_min, t_max], drawn
anew for each sample: v is guided inside the interval, and one evaluation samples at any scale. From the paper's code:
the distributions (`flow/guidance.py: draw`), no interval where r = t, no guidance of v where the label is dropped, and
`1 - 1 / w` as input. Ours: `u(z_t, t, t)` in place of its second output for v, MF-RAE's weights of the loss, and
guidance of the teacher's velocity, which iMF does not have.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.conditions import drop
from rae_jax.components.generators import flow_map as flow_map_network
from rae_jax.components.generators import flow_map_teacher, time_shift
from rae_jax.components.latent_spaces import by_name
from rae_jax.components.telling import telling
from rae_jax.flow import guidance
from rae_jax.flow.path import interpolate, over, velocity_target
from rae_jax.flow.times import sample_times
from rae_jax.objectives.cmt import sampled_in_one_step, starts_from, take_over
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key
from rae_jax.objectives.velocity import encoding_parts, latent_encoder

# `(params, z, r, t, what it is told) -> mean velocity`
ParametrisedFlowMap = Callable[[Params, jax.Array, jax.Array, jax.Array, Any], jax.Array]
DERIVATIVES, TANGENTS = ("finite_difference", "jvp"), ("target", "own")


def intervals(times: jax.Array, uniform: jax.Array, *, unequal_share: float) -> tuple[jax.Array, jax.Array]:
    """Interval ends (r, t), each `[B]`, r <= t, from pairs of times `[B, 2]`.

    Args:
      uniform: `[B]` in [0, 1]; where it is below `1 - unequal_share` the interval is empty, r = t.
    """
    r, t = jnp.min(times, axis=1), jnp.max(times, axis=1)
    return jnp.where(uniform < 1 - unequal_share, t, r), t


def finite_difference(
    flow_map: ParametrisedFlowMap,
    params: Params,
    z_t: jax.Array,
    v: jax.Array,
    r: jax.Array,
    t: jax.Array,
    asked: Any,
    dt: float,
) -> tuple[jax.Array, jax.Array]:
    """`u` and `du/dt = (u(z_t + dt v, r, t + dt) - u(z_t - dt v, r, t - dt)) / (2 dt)`, each `[B, ...]`.

    Its error falls as dt^2, until rounding, which grows as 1 / dt, takes over. `t + dt` may pass 1. Only u is
    differentiated.
    """
    # The two outer points go through in one pass of their own, whose parameters are constants: nothing is kept of it
    # for the backward pass, which one pass over all three would need. Each sample next to its twin keeps a divided
    # batch where it is.
    z, t_outer = (rearrange(jnp.stack([x + d, x - d]), "two b ... -> (b two) ...") for x, d in ((z_t, dt * v), (t, dt)))
    r_outer, asked_outer = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), jax.lax.stop_gradient((r, asked)))
    outer = flow_map(jax.lax.stop_gradient(params), z, r_outer, t_outer, asked_outer)
    after, before = rearrange(outer, "(b two) ... -> two b ...", two=2)
    return flow_map(params, z_t, r, t, asked), (after - before) / (2 * dt)


def exact_derivative(
    flow_map: ParametrisedFlowMap,
    params: Params,
    z_t: jax.Array,
    v: jax.Array,
    r: jax.Array,
    t: jax.Array,
    asked: Any,
) -> tuple[jax.Array, jax.Array]:
    """`u` and `du/dt`, each `[B, ...]`, by forward differentiation; only u is differentiated any further."""
    u, dudt = jax.jvp(
        lambda z, t: flow_map(params, z, r, t, asked),
        (z_t, t),
        (v, jnp.ones_like(t)),
    )
    return u, jax.lax.stop_gradient(dudt)


def target(v: jax.Array, dudt: jax.Array, r: jax.Array, t: jax.Array) -> jax.Array:
    """The regression target `sg[v - (t - r) du/dt]`."""
    return jax.lax.stop_gradient(v - over(t - r, v) * dudt)


def guided_by_itself(v: jax.Array, own: jax.Array, own_null: jax.Array, scale: jax.Array) -> jax.Array:
    """`v + (1 - 1 / w) (own - own_null)`, the velocity that a guided flow map learns without a teacher (iMF).

    With `own` the flow map's velocity at scale w: `[B]`, and `own_null` that without a condition, a flow map that has
    learnt it is at `v_null + w (v - v_null)`, classifier-free guidance.
    """
    return v + over(1 - 1 / scale, v) * (own - own_null)


def adaptive_loss(error: jax.Array, power: float) -> jax.Array:
    """`e^2 / sg(e^2 + 0.001)^power` of each sample's summed squared error e, `[B]`, as released.

    With power 1 every sample counts about the same, and the value stays near 1: progress shows in the error only.
    """
    return jnp.square(error) / jax.lax.stop_gradient(jnp.square(error) + 1e-3) ** power


def squared_error(u: jax.Array, target: jax.Array) -> jax.Array:
    """Each sample's summed squared error, `[B]`."""
    return jnp.sum(jnp.square(u - target), axis=tuple(range(1, u.ndim)))


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`."""
    section, told = config[stage], telling(config)
    student = flow_map_network(config, stage)
    encode = latent_encoder(config)
    draw_times = functools.partial(
        sample_times,
        distribution=section.time_distribution,
        mean=section.logit_normal_mean,
        std=section.logit_normal_std,
        shift=time_shift(config),
    )
    eta, dt, by_jvp, power = section.eta, section.dt, section.derivative == "jvp", section.adaptive_power
    unequal_share, dropout, again = section.unequal_share, section.label_dropout, section.label_dropout_network
    if section.derivative not in DERIVATIVES:
        raise ValueError(f"derivative={section.derivative!r} is not one of {DERIVATIVES}")
    guided, largest_scale, tangent = section.guided, section.largest_guidance_scale, section.tangent
    if told.reads and config.data.latents:
        raise ValueError(f"{stage} is told texts, and data.latents={config.data.latents!r} has none; set it to ''")
    if tangent not in TANGENTS:
        raise ValueError(f"tangent={tangent!r} is not one of {TANGENTS}")
    if by_jvp and config.mixture.model.get("freeze_understanding"):
        raise ValueError(
            f"{stage}.derivative='jvp', which does not see through the understanding expert that "
            "mixture.model.freeze_understanding holds; use 'finite_difference'"
        )
    if config.mixture.model and eta < 1 and config.flow_map.teacher.guidance_scale > 1:
        raise ValueError(
            f"{stage}.eta={eta} learns a part from data, which nothing guides, and flow_map.teacher.guidance_scale="
            f"{config.flow_map.teacher.guidance_scale}; set {stage}.eta=1, or that scale to 1"
        )
    if by_jvp:
        student = student.clone(fused_attention=False)  # whose kernel has no forward derivative
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is not in [0, 1]: 1 distils the teacher (MFD), 0 goes without it (MFT)")

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        time_key, equal_key, noise_key, drop_key, again_key, guidance_key = jax.random.split(key, 6)
        batch = told.seen(frozen, batch)
        z = encode(frozen, batch)
        rows = z.shape[0]
        times = draw_times(time_key, 2 * rows).reshape(rows, 2)
        r, t = intervals(times, jax.random.uniform(equal_key, (rows,)), unequal_share=unequal_share)
        eps = jax.random.normal(noise_key, z.shape)
        guiding, scale = [], jnp.ones_like(t)  # what the flow map is told of guidance, and what that comes to at t
        if guided:
            drawn = guidance.draw(guidance_key, rows, largest_scale)
            guiding = [jnp.where((r == t)[:, None], guidance.throughout(drawn[:, 0]), drawn)]
            scale = guidance.scale_at(*guiding, t)
        # Once, so that teacher and all evaluations of the flow map mean the same.
        asked = told.condition(frozen, batch)
        null = told.null(asked)
        asked, scale = drop(drop_key, (asked, scale), (null, jnp.ones_like(scale)), dropout)
        z_t, v = interpolate(z, eps, t), velocity_target(z, eps)

        def flow_map(params: Params, z: jax.Array, r: jax.Array, t: jax.Array, told_now: Any) -> jax.Array:
            asked, null, *guiding = told_now
            # A batch and the twins of its finite difference differ in rows, and so draw apart.
            row_key = jax.random.fold_in(again_key, z.shape[0])
            return student.apply(params, z, t, drop(row_key, asked, null, again), r, *guiding)

        read = student.read(params, asked)
        nothing = student.read(params, null) if again or guided else read  # which is for nothing else

        def own_velocity(read: Any, scale: jax.Array) -> jax.Array:
            told_now = [read, nothing, *[guidance.throughout(scale)] * guided]
            return flow_map(*jax.lax.stop_gradient((params, z_t, t, t, told_now)))

        if tangent == "own" or (guided and eta < 1):
            own = own_velocity(read, scale)
        if guided and eta < 1:
            v = guided_by_itself(v, own, own_velocity(nothing, jnp.ones_like(scale)), scale)
        if eta > 0:
            v_teacher = told.velocity(frozen, asked, null, (lambda t: scale) if guided else None)
            v = (1 - eta) * v + eta * v_teacher(z_t, t)
        direction, told_now = own if tangent == "own" else v, [read, nothing, *guiding]
        if by_jvp:
            u, dudt = exact_derivative(flow_map, params, z_t, direction, r, t, told_now)
        else:
            u, dudt = finite_difference(flow_map, params, z_t, direction, r, t, told_now, dt)
        error, counts = squared_error(u, target(v, dudt, r, t)), told.shares(batch)
        mean_squared_error = jnp.mean(counts * error) / (z.shape[1] * z.shape[2])
        return jnp.mean(counts * adaptive_loss(error, power)), {"mean_squared_error": mean_squared_error}

    without_mid_training = (
        f"MeanFlow is known to diverge without consistency mid-training: train the stage 'mid_training' and set "
        f"{stage}.initial='mid_training' (it is {section.initial!r})"
    )
    return single_network(
        model_init=student.init,
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen=encoding_parts(config) | told.parts | (by_name(flow_map_teacher(config)) if eta > 0 else {}),
        initial=starts_from(config, stage),
        begin=take_over,
        whole=told.whole,
        **told.reads,
        reads_latents=bool(config.data.latents),
        likely_cause="" if section.initial == "mid_training" else without_mid_training,
        **sampled_in_one_step(config, stage),
    )
