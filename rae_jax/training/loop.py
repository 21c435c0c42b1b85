"""The one training loop: restore, then step, report, take pictures, save, until the stage is done.

It knows an objective only through `init` and `train_step`, so every stage of every paper runs through here.
"""

import collections
import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jax
import jax.numpy as jnp
from clu import parameter_overview
from ml_collections import ConfigDict

from rae_jax.training import sharding
from rae_jax.training.checkpoint import Checkpoints, structure_of
from rae_jax.training.checkpoint_weights import CHECKPOINTS, About
from rae_jax.training.progress import RunLog
from rae_jax.training.state import TrainState, ema_decays
from rae_jax.training.stopping import Interrupted, StopRequest

PROFILED_STEPS = 3
# Steps that the devices may be behind. One keeps them busy; with many, whoever asks to stop would wait for all of them.
AHEAD = 2


class BatchStream(Protocol):
    """Batches already on the devices, with the position that a checkpoint must hold to continue after them."""

    seconds_waited: float

    def __next__(self) -> dict[str, jax.Array]: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class Diverged(RuntimeError):
    """The loss or the gradient is not finite step after step, or has passed a bound."""


def fit(
    objective: Any,
    train: ConfigDict,
    *,
    stage: str,
    total_steps: int,
    key: jax.Array,
    batches: BatchStream,
    example: dict[str, jax.ShapeDtypeStruct],
    frozen: dict[str, Any],
    load_initial: Callable[[], dict[str, Any]],
    mesh: jax.sharding.Mesh,
    directory: Path,
    config: dict[str, Any],
    components: dict[str, str],
    log: RunLog,
    on_pictures: Callable[[TrainState, int], None],
    on_evaluation: Callable[[TrainState], dict[str, float]],
    seconds_at_peak: float | None = None,
) -> TrainState:
    """Trains one stage to `total_steps`, continuing from its newest checkpoint if there is one.

    Args:
      objective: see `objectives/objective.py`.
      train: the stage's `train` section.
      stage: its name, for messages and metrics.
      key: initialises the parameters.
      batches: endless batches on the devices.
      example: shapes of a global batch.
      frozen: parameters for `state.frozen`, on the devices.
      load_initial: gives the parameters that the stage starts from, on the devices; called on its first start only.
      directory: checkpoints go below it.
      config: the whole configuration, kept in each checkpoint.
      components: what each checkpoint says that its averaged parameters are, see `checkpoint_weights.About`.
      on_pictures: called with the state every `train.pictures_every` steps, and at the end.
      on_evaluation: gives the state's metrics every `train.evaluate_every` steps and after the last, if that is not 0.
      seconds_at_peak: how long the devices would need for a step's matrix products at their peak, if that is known.

    Raises:
      Diverged: a loss or gradient norm beyond its bound was seen, or too many steps in a row with one that is not
        finite. No checkpoint has been made since.
      NotSaved: a checkpoint could not be written.
      Interrupted: the process was asked to stop, and a checkpoint is on disk.
    """
    shapes = jax.eval_shape(objective.init, key, example)
    layout = sharding.shardings_of(shapes, mesh)
    best = (train.best_metric, objective.evaluation.better[train.best_metric]) if train.best_metric else None
    about = About(stage=stage, components=components, ema_decays=list(ema_decays(train)), best=best)
    checkpoints = Checkpoints(
        directory / CHECKPOINTS,
        keep=train.keep_checkpoints,
        keep_every=train.keep_every_steps,
        config=config,
        about=about,
    )
    try:
        restored = checkpoints.restore(structure_of(sharding.unbox(shapes), layout), log.warn)
        if restored is not None:
            state, data_position = restored
            batches.restore(data_position)
            seen = f", after {data_position['position']:,} images" if "position" in data_position else ""
            log.say(f"{stage}: continuing from step {int(state.step)} of {total_steps}{seen}")
        else:
            first = sharding.jit_for_one_call(
                lambda k, initial: objective.first_state(k, example, initial), mesh, layout
            )
            state = first(key, load_initial())
        step = int(state.step)
        log.say(f"{stage}: {parameter_overview.count_parameters(state.params):,} parameters")
        log.rewind(stage, step)
        state = state.replace(frozen=frozen)

        def evaluated_at(step: int) -> bool:
            return train.evaluate_every > 0 and (step % train.evaluate_every == 0 or step == total_steps)

        def evaluate(step: int) -> dict[str, float]:
            measured = on_evaluation(state)
            log.metrics(stage, step, {f"evaluation/{name}": value for name, value in measured.items()})
            shown = ", ".join(f"{name.replace('_', ' ')} = {value:.4g}" for name, value in measured.items())
            log.say(f"{stage}: held-out images at step {step}: {shown}")
            return measured

        with log.progress(stage, total_steps, step) as display, contextlib.ExitStack() as while_training:
            if step < total_steps:
                began = time.monotonic()
                compiled = lower_step(objective.train_step, state, example, mesh).compile()
                log.metrics(stage, step, {"compile_seconds": time.monotonic() - began})
            stop = while_training.enter_context(StopRequest())
            due = restored is not None and evaluated_at(step)
            if due and not sharding.of_first_process(log.has(stage, step, "evaluation/")):
                evaluate(step)  # the run was stopped while it did
            window = _Window(step, batches, seconds_at_peak)
            watch = _Watch(objective, train, stage, step, log)
            in_flight: collections.deque[dict[str, jax.Array]] = collections.deque()
            while step < total_steps:
                batch = next(batches)
                if step == train.profile_step > 0:
                    jax.block_until_ready(state)
                    jax.profiler.start_trace(str(directory / "profile"))
                state, metrics = compiled(state, batch)
                step += 1
                if step == train.profile_step + PROFILED_STEPS and train.profile_step > 0:
                    jax.block_until_ready(state)
                    jax.profiler.stop_trace()
                    log.say(f"{stage}: profile of {PROFILED_STEPS} steps in {directory / 'profile'}")
                display.advance(step)
                watch.see(metrics)
                in_flight.append(metrics)
                if len(in_flight) > AHEAD:
                    jax.block_until_ready(in_flight.popleft())
                stopping = stop.agreed()
                evaluating = evaluated_at(step)
                milestone = train.keep_every_steps and step % train.keep_every_steps == 0
                periodic = milestone or step % train.checkpoint_every == 0
                saving = stopping or evaluating or periodic or step == total_steps
                logging = step % train.log_every == 0 or step == total_steps
                if saving or logging:
                    checkpoints.raise_if_failed()
                    # Before the checkpoint, so that none is made of a state that has diverged.
                    values = watch.check(step, checkpoints.latest_step)
                if logging:
                    values |= window.close(step, batches, train.batch_size, total_steps)
                    log.metrics(stage, step, values)
                    display.report(step, values)
                measured = {}
                if evaluating:
                    began = time.monotonic()
                    try:
                        measured = evaluate(step)
                    except Interrupted:
                        stopping = True
                    window.leave_out(time.monotonic() - began)
                # After the step and before the next batch, so that state and data position agree.
                if saving:
                    checkpoints.save(state, step, batches.state(), measured)
                if stopping and (step < total_steps or (evaluating and not measured)):
                    log.say(f"{stage}: asked to stop; saving step {step}. The same command continues from there")
                    raise Interrupted
                if train.pictures_every and step % train.pictures_every == 0 and step < total_steps:
                    on_pictures(state, step)
        on_pictures(state, step)
        return state
    finally:
        checkpoints.close()


Step = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def skip_if_not_finite(step: Step) -> Step:
    """The step, but where a metric (the loss, the gradient's norm) is not finite only the step's number changes.

    The metric "skipped" says so, as 1. It is part of the computation: nothing waits for the host.
    """

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        new, metrics = step(state, batch)
        finite = jnp.all(jnp.isfinite(jnp.stack([jnp.asarray(value, jnp.float32) for value in metrics.values()])))
        kept = jax.tree.map(
            lambda after, before: jnp.where(finite, after, before), new.replace(frozen=None), state.replace(frozen=None)
        )
        skipped = 1.0 - finite.astype(jnp.float32)
        return kept.replace(step=new.step, frozen=new.frozen), metrics | {"skipped": skipped}

    return train_step


# How much of a core's fast memory one operation may have, in KiB, by kind of device. The compiler's own choice, 16 MiB,
# leaves the rest for what it fetches ahead of later operations. docs/performance.md has what either gives.
OPERATION_MEMORY = {"TPU v5": 56 * 1024, "TPU v5p": 56 * 1024}


def lower_step(
    train_step: Step, state: TrainState, example: dict[str, jax.ShapeDtypeStruct], mesh: jax.sharding.Mesh
) -> jax.stages.Lowered:
    """The step as one program for exactly these shapes and shardings: it cannot be compiled a second time.

    A step that is not finite is skipped. The state is donated, and comes back laid out as it went in. It may be shapes
    with shardings only.
    """
    layout = jax.tree.map(lambda x: x.sharding, state)
    rows = sharding.batch_sharding(mesh)
    memory = OPERATION_MEMORY.get(mesh.devices.flat[0].device_kind)
    step = jax.jit(
        skip_if_not_finite(train_step),
        in_shardings=(layout, rows),
        out_shardings=(layout, sharding.replicated(mesh)),
        donate_argnums=0,
        compiler_options={"xla_tpu_scoped_vmem_limit_kib": str(memory)} if memory else None,
    )
    return step.lower(state, example)


class _Watch:
    """Looks for divergence in the metrics of all steps since the last check, which stay on the device until then."""

    def __init__(self, objective: Any, train: ConfigDict, stage: str, step: int, log: RunLog):
        self._objective, self._stage, self._last_good, self._log = objective, stage, step, log
        self._expected = dict(objective.expected)
        self._bounds = {"gradient_norm": train.max_gradient_norm, "loss": train.max_loss}
        # A pass that must see every image exactly once cannot leave any out.
        self._max_skipped = 0 if objective.one_epoch else train.max_skipped_steps
        self._skipped_in_a_row = 0
        self._seen: list[dict[str, jax.Array]] = []

    def see(self, metrics: dict[str, jax.Array]) -> None:
        """Takes note of one step's metrics."""
        self._seen.append(metrics)

    def check(self, step: int, latest_checkpoint: int | None) -> dict[str, float]:
        """The newest metrics of a step that was not skipped, as numbers, and how many were skipped if any.

        Raises:
          Diverged: since the last check, a metric was beyond its bound, or more than `max_skipped_steps` steps in a row
            were skipped because one was not finite.
        """
        history = [{name: float(value) for name, value in metrics.items()} for metrics in jax.device_get(self._seen)]
        self._seen = []
        newest, skipped = {}, 0
        for seen in history:
            if seen.pop("skipped"):
                skipped += 1
                self._skipped_in_a_row += 1
                if self._skipped_in_a_row > self._max_skipped:
                    name = next(name for name, value in seen.items() if not math.isfinite(value))
                    more = f", in {self._skipped_in_a_row} steps in a row" if self._max_skipped else ""
                    self._stop(f"{name} became non-finite{more}", step, latest_checkpoint)
                continue
            self._skipped_in_a_row, newest = 0, seen
            for name, bound in self._bounds.items():
                if 0 < bound < seen.get(name, 0.0):
                    self._stop(
                        f"{name} reached {seen[name]:.3g}, beyond config.{self._stage}.train.max_{name}={bound:g},",
                        step,
                        latest_checkpoint,
                    )
        if skipped:
            self._log.warn(
                f"{self._stage}: {skipped} of the steps {self._last_good + 1} to {step} skipped: loss or gradient "
                "not finite"
            )
            newest["skipped_steps"] = float(skipped)
        self._warn_of_unexpected(newest, step)
        self._last_good = step
        return newest

    def _warn_of_unexpected(self, metrics: dict[str, float], step: int) -> None:
        for name, (low, high) in list(self._expected.items()):
            if name in metrics and not low <= metrics[name] <= high:
                self._log.warn(
                    f"{self._stage}: {name} is {metrics[name]:.3g} at step {step}, where {low:g} to {high:g} is usual: "
                    f"{self._objective.unexpected}"
                )
                del self._expected[name]

    def _stop(self, what: str, step: int, latest_checkpoint: int | None) -> NoReturn:
        raise Diverged(
            f"{self._stage}: {what} "
            f"between steps {self._last_good} and {step}; the last checkpoint is of step {latest_checkpoint}. "
            + (f"{self._objective.likely_cause}. " if self._objective.likely_cause else "")
            + f"Lower config.{self._stage}.train.optimizer.learning_rate, or look at the data of those steps"
        )


class _Window:
    """Times the steps between two reports."""

    def __init__(self, step: int, batches: BatchStream, seconds_at_peak: float | None):
        self._seconds_at_peak = seconds_at_peak
        self._open(step, batches)

    def _open(self, step: int, batches: BatchStream) -> None:
        self._step, self._time, self._waited = step, time.monotonic(), batches.seconds_waited

    def leave_out(self, seconds: float) -> None:
        """The run has spent `seconds` on something else."""
        self._time += seconds

    def close(self, step: int, batches: BatchStream, batch_size: int, total_steps: int) -> dict[str, float]:
        steps, seconds = step - self._step, time.monotonic() - self._time
        values = {
            "step_seconds": seconds / steps,
            "images_per_second": batch_size * steps / seconds,
            "data_wait_share": (batches.seconds_waited - self._waited) / seconds,
            "seconds_left": (total_steps - step) * seconds / steps,
        }
        if self._seconds_at_peak is not None:
            values["model_flops_utilisation"] = self._seconds_at_peak * steps / seconds
        self._open(step, batches)
        return values
