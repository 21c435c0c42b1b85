"""The optimizer of every objective: AdamW, or Muon for matrices, behind global-norm clipping; and its schedules."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from rae_jax.training.muon import muon

OPTIMIZERS = ("adamw", "muon")
SHAPES = ("constant", "linear", "cosine")


def learning_rate_schedule(
    base: float, *, final: float, warmup_steps: int, decay_end_step: int, shape: str, warmup_from_zero: bool
) -> Callable[[jax.Array], jax.Array]:
    """Learning rate of step 0, 1, ...: warm-up, then decay to `final` at `decay_end_step`, then flat.

    During the first `warmup_steps` it is `base`, or with `warmup_from_zero` `base * (step + 1) / warmup_steps`, as the
    released RAE schedules count it. The decay is a straight line, a half cosine, or none (`shape`).

    Raises:
      ValueError: unknown shape, or a decay that ends before the warm-up does.
    """
    if shape not in SHAPES:
        raise ValueError(f"learning-rate shape {shape!r} is not one of {list(SHAPES)}")
    if shape != "constant" and decay_end_step <= warmup_steps:
        raise ValueError(
            f"the learning rate's decay ends at step {decay_end_step}, within its {warmup_steps} warm-up steps"
        )

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        if shape == "constant":
            rate = jnp.full_like(step, base)
        else:
            progress = jnp.clip((step - warmup_steps) / (decay_end_step - warmup_steps), 0.0, 1.0)
            share = 1.0 - progress if shape == "linear" else 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            rate = final + (base - final) * share
        if warmup_from_zero and warmup_steps > 0:
            rate = jnp.where(step < warmup_steps, base * (step + 1) / warmup_steps, rate)
        return rate

    return schedule


def kernels_only(params: Any) -> Any:
    """True for the parameters that weight decay acts on: kernels, not biases, norms, tables, tokens or frequencies.

    Names tell them apart: in a scanned stack a bias is an array of two axes.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(getattr(entry, "key", None) == "kernel" for entry in path), params
    )


Schedule = Callable[[jax.Array], jax.Array]


def make_optimizer(
    config: ConfigDict,
    others: Mapping[str, ConfigDict] = MappingProxyType({}),
    group: Callable[[tuple[str, ...]], str] = lambda path: "",
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer that an `optimizer` section asks for, and its learning-rate schedule; durations are in steps.

    Args:
      others: more such sections, for parameters that are to have an optimizer of their own. Gradients are clipped
        together, by the norm of `config`.
      group: the path of a parameter -> the name of its section among `others`; "": none.

    Raises:
      ValueError: there is no such optimizer, or schedule.
    """
    clipping = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    update, schedule = _unclipped(config)
    if not others:
        return optax.chain(*clipping, update), schedule

    def groups(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: group(tuple(entry.key for entry in path if hasattr(entry, "key"))), params
        )

    each = {"": update} | {name: _unclipped(section)[0] for name, section in others.items()}
    return optax.chain(*clipping, optax.partition(each, groups)), schedule


def _unclipped(config: ConfigDict) -> tuple[optax.GradientTransformation, Schedule]:
    if config.name not in OPTIMIZERS:
        raise ValueError(f"optimizer.name={config.name!r} is not one of {list(OPTIMIZERS)}")
    schedule = learning_rate_schedule(
        config.learning_rate,
        final=config.final_learning_rate,
        warmup_steps=config.warmup_steps,
        decay_end_step=config.decay_end_step,
        shape=config.shape,
        warmup_from_zero=config.warmup_from_zero,
    )
    adamw = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=kernels_only if config.name == "adamw" else None,  # the released Muon's decays every parameter
    )
    if config.name == "adamw":
        return adamw, schedule
    update = muon(
        schedule,
        adamw,
        momentum=config.muon_momentum,
        nesterov=config.muon_nesterov,
        weight_decay=config.weight_decay,
        coefficients=config.muon_coefficients,
        products=config.muon_products,
    )
    return update, schedule
