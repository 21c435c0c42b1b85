"""What an objective is, and how one is made from a loss: the contract between the objectives and the training loop."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from ml_collections import ConfigDict

from rae_jax.components.component import Component
from rae_jax.evaluation.metrics import Metric
from rae_jax.training.optimizer import make_optimizer
from rae_jax.training.sharding import unbox
from rae_jax.training.state import TrainState, ema_decays

Params = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a stage is judged on held-out images while it trains.

    Attributes:
      metrics: what is computed.
      measure: `(state, batch) -> {set: {quantity: rows [B, ...]}}`, what the metrics need; the batch is one of
        `evaluator.source_batches`. It should use the averaged parameters.
      needs: components whose trained parameters `measure` finds in `state.frozen` beside the objective's own.
    """

    metrics: tuple[Metric, ...]
    measure: Callable[[TrainState, Batch], dict[str, dict[str, jax.Array]]]
    needs: dict[str, Component] = dataclasses.field(default_factory=dict)

    @property
    def better(self) -> dict[str, str]:
        """Whether each metric should be "higher" or "lower"."""
        return {metric.name: metric.better for metric in self.metrics}


@dataclasses.dataclass(frozen=True)
class Objective:
    """Everything that the loop knows of a stage.

    Attributes:
      init: `(key, batch) -> TrainState`, whose parameters are boxed with their logical axis names. Traced abstractly
        first, so it may look at the shapes of the batch only.
      train_step: `(state, batch) -> (state, metrics)`; pure, metrics are float32 scalars.
      frozen: components whose trained parameters the step needs in `state.frozen`, by name.
      initial: likewise, components whose trained parameters the stage starts from; they are not kept.
      begin: `(params, {name: initial parameters}) -> params` to start with. Called if there are `initial` ones.
      wanted: likewise, components that only `pictures` needs; without them there are no pictures.
      within: the entry of the parameters that is the component's, beside what only training needs; "": all are.
      finish: `state -> parameters` that the stage leaves to later ones, if they are not the averaged ones.
      pictures: `(state, batch) -> {name: images [M, H, W, 3] in [0, 1]}`, or None: versions of the same images,
        "original" among them, or "samples", of which `groups` says how they are laid out.
      groups: the rows of a picture of samples: captions, and the numbers of the samples in each.
      evaluation: how the stage is judged while it trains, or None.
      likely_cause: what to say first if the stage diverges.
      expected: between what a metric lies where all is well, by its name; outside there is a warning, once.
      unexpected: what that warning says.
      reads_latents: its batches have the "latent" of `config.data.latents` in place of the "image".
      reads_conversations: its batches are of conversations, with their images (`data.conversation_batches`).
      reads_packs: its batches are of packs, as `data/pack_batches.py` makes them.
      reads_requests: its batches are of single images and what they are asked for by, of `data/request_batches.py`.
      one_epoch: the stage makes one exact pass over the data in order (with `mask`) instead of `train.steps` steps.
    """

    init: Callable[[jax.Array, Batch], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    frozen: dict[str, Component]
    initial: dict[str, Component] = dataclasses.field(default_factory=dict)
    begin: Callable[[Params, dict[str, Params]], Params] = lambda params, initial: params
    wanted: dict[str, Component] = dataclasses.field(default_factory=dict)
    within: str = ""
    finish: Callable[[TrainState], Params] | None = None
    pictures: Callable[[TrainState, Batch], dict[str, jax.Array]] | None = None
    groups: Sequence[tuple[str, np.ndarray]] = ()
    evaluation: Evaluation | None = None
    likely_cause: str = ""
    expected: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    unexpected: str = ""
    reads_latents: bool = False
    reads_conversations: bool = False
    reads_packs: bool = False
    reads_requests: bool = False
    one_epoch: bool = False

    def first_state(self, key: jax.Array, batch: Batch, initial: dict[str, Params]) -> TrainState:
        """The state before the first step; parameters are plain arrays, as in `initial`."""
        state = unbox(self.init(key, batch))
        if not self.initial:
            return state
        params = self.begin(state.params, initial)
        return state.starting_at(params)

    def result(self, state: TrainState) -> Params:
        """What the stage leaves to later ones, by component if it trains several."""
        if self.finish:
            return self.finish(state)
        return state.ema_params[self.within] if self.within else state.ema_params

    def going_on_from(self, given: dict[str, Component], trained: Sequence[str]) -> "Objective":
        """The objective, whose stage starts from weights of the `given` ones of the components that it has `trained`.

        They come before what it starts from otherwise. Its optimizer starts anew, and so does the average.
        """
        alone = len(trained) == 1
        initial = given if alone else {**self.initial, **given}

        def begin(params: Params, loaded: dict[str, Params]) -> Params:
            if alone:
                (values,) = loaded.values()
                return {**params, self.within: values} if self.within else values
            if self.initial:
                params = self.begin(params, {name: loaded[name] for name in self.initial})
            return {**params, **{name: loaded[name] for name in given}}

        return dataclasses.replace(self, initial=initial, begin=begin)


def stage_key(seed: int, stage: str) -> jax.Array:
    """The random key of a stage; each step folds its number into it, so that a resumed run draws the same numbers."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stage.encode()))


def to_float(batch: Batch) -> jax.Array:
    """The batch's images as `[B, H, W, 3]` float32 in [0, 1]; they travel to the device as bytes."""
    return batch["image"].astype(jnp.float32) / 255.0


def single_network(
    *,
    model_init: Callable[[jax.Array], Params],
    loss: Callable[[Params, dict[str, Params], Batch, jax.Array], tuple[jax.Array, Metrics]],
    train: ConfigDict,
    key: jax.Array,
    frozen: dict[str, Component],
    whole: Callable[[Batch], Batch] = lambda batch: batch,
    grouped: Mapping[str, Any] = MappingProxyType({}),
    **hooks: Any,
) -> Objective:
    """An objective with one trained network, or several under one loss, and one optimizer.

    Args:
      model_init: `key -> boxed parameters`.
      loss: `(params, frozen, batch, key) -> (scalar, metrics)`.
      train: the stage's `train` section: optimizer, EMA decays, gradient accumulation.
      key: the stage's key.
      whole: the batch with what its parts have to know of all of it, a row for each of its own.
      grouped: `others` and `group` of `training.optimizer.make_optimizer`.
      hooks: the other fields of `Objective`.
    """
    optimizer, learning_rate = make_optimizer(train.optimizer, **grouped)
    pieces, decays = train.gradient_accumulation, ema_decays(train)

    def init(init_key: jax.Array, batch: Batch) -> TrainState:
        del batch  # the architecture fixes every shape
        params = model_init(init_key)
        return TrainState.create(params, optimizer.init(params), decays)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        (value, metrics), gradients = accumulate(
            lambda piece, piece_key: value_and_grad(state.params, state.frozen, piece, piece_key),
            whole(batch),
            step_key,
            pieces,
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": learning_rate(state.step),
        }
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state).averaged(decays), metrics

    return Objective(init=init, train_step=train_step, frozen=frozen, **hooks)


def accumulate(step: Callable[[Batch, jax.Array], Any], batch: Batch, key: jax.Array, pieces: int) -> Any:
    """The mean of `step(piece, key)` over `pieces` equal parts of the batch, computed one after the other."""
    if pieces == 1:
        return step(batch, key)
    # Every device keeps its own rows: row i * pieces + j goes to piece j.
    parts = jax.tree.map(lambda x: rearrange(x, "(b pieces) ... -> pieces b ...", pieces=pieces), batch)
    keys = jax.random.split(key, pieces)
    total = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, jax.tree.map(lambda x: x[0], parts), keys[0])
    )

    def add(carry: Any, part_and_key: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, step(*part_and_key)), None

    total, _ = jax.lax.scan(add, total, (parts, keys))
    return jax.tree.map(lambda x: x / pieces, total)
