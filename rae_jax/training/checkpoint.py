"""Checkpoints: the whole state, the position in the data and the config, written while training goes on."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from rae_jax.training.state import TrainState

log = logging.getLogger(__name__)


class NotSaved(OSError):
    """A checkpoint could not be written; those before it are whole."""


class Checkpoints:
    """The last few checkpoints of one stage, and the best by a metric, a directory per step under `directory`.

    Saving returns at once and goes on in the background; `close` waits for it.

    Args:
      keep: how many of the newest are kept.
      best: the metric by which one more is kept, and whether "higher" or "lower" values of it are better.
    """

    def __init__(self, directory: Path, *, keep: int, config: dict[str, Any], best: tuple[str, str] | None = None):
        self._config = config
        # Apart from each other: a newest checkpoint that is not the best is still the one to continue from.
        kept = [policies.LatestN(keep)]
        goodness = None if best is None else _goodness(*best)
        if goodness is not None:
            kept.append(policies.BestN(get_metric_fn=goodness, n=1, keep_checkpoints_without_metrics=False))
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                best_fn=goodness,  # without it the metrics of checkpoints made before this start are not read
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,  # what a killed process had not finished
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest step on disk, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, data_position: dict[str, Any], metrics: dict[str, float]) -> None:
        """Saves `state` (without its frozen parts) where the data stands after `step` updates, and its `metrics`.

        Raises:
          NotSaved: this checkpoint or the one before it could not be written.
        """
        parts = _trained_parts(state)
        with self._said_plainly():
            self._manager.save(
                step,
                metrics=metrics,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(parts),
                    data=ocp.args.JsonSave(data_position),
                    config=ocp.args.JsonSave(self._config),
                    checksums=ocp.args.JsonSave(jax.device_get(checksums(parts)).tolist()),
                ),
            )

    def raise_if_failed(self) -> None:
        """Raises `NotSaved` if a save in the background has failed."""
        with self._said_plainly():
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _said_plainly(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and the storage below it raise errors of many types
            directory = Path(self._manager.directory)
            left = sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())
            raise NotSaved(
                f"a checkpoint could not be written under {directory} ({_first_line(error)}); "
                + (f"the checkpoints of steps {left} are whole. " if left else "there is none before it. ")
                + "Look at the space left there (df) and the permissions, then run the same command again"
            ) from error

    def restore(self, structure: TrainState, warn: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, laid out as `structure` says, or None if there is none at all.

        `structure` holds a `jax.ShapeDtypeStruct` with a sharding for every array; the checkpoint may come from any
        other mesh. A damaged checkpoint is named through `warn` and the one before it is tried.

        Raises:
          ValueError: there are checkpoints, and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(_trained_parts(structure)),
                        data=ocp.args.JsonRestore(),
                        checksums=ocp.args.JsonRestore(),
                    ),
                )
                _compare(checksums(restored["state"]), restored["checksums"], restored["state"])
            except Exception as error:  # whatever a broken file raises, the checkpoint before it may be whole
                warn(f"checkpoint {self._manager.directory / str(step)} cannot be read ({_first_line(error)})")
                continue
            if step != steps[0]:
                warn(f"continuing from step {step} instead; the damaged ones are removed")
                for damaged in steps[: steps.index(step)]:
                    self._manager.delete(damaged)
            return structure.replace(**restored["state"]), restored["data"]
        if steps:
            raise ValueError(
                f"no checkpoint under {self._manager.directory} can be read (tried steps {steps}); "
                "restore the directory from a copy, or move it away to train this stage from the start"
            )
        return None

    def close(self) -> None:
        """Waits for the save under way.

        Raises:
          NotSaved: it failed.
        """
        with self._said_plainly():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()


def _goodness(metric: str, better: str) -> Callable[[dict[str, float]], float]:
    """What is largest for the best checkpoint; one that was not evaluated is worse than any."""

    def goodness(metrics: dict[str, float]) -> float:
        value = metrics.get(metric, math.nan)
        return -math.inf if math.isnan(value) else value if better == "higher" else -value

    return goodness


def _trained_parts(state: TrainState) -> dict[str, Any]:
    parts = {name: getattr(state, name) for name in ("step", "params", "ema_params", "opt_state", "discriminator")}
    return {name: value for name, value in parts.items() if value is not None}


@jax.jit
def checksums(tree: Any) -> jax.Array:
    """The sum of each array's bits modulo 2^32, uint32 `[number of arrays]`, the same on any mesh.

    The storage below has no checksum of the values: a flipped bit would come back as a weight.
    """

    def of(x: jax.Array) -> jax.Array:
        bits = x if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        return jnp.sum(bits, dtype=jnp.uint32)

    return jnp.stack([of(x) for x in jax.tree.leaves(tree)])


def _compare(found: jax.Array, saved: list[int], tree: Any) -> None:
    for (path, _), now, then in zip(jax.tree.leaves_with_path(tree), jax.device_get(found), saved, strict=True):
        if now != then:
            raise ValueError(f"{jax.tree_util.keystr(path, simple=True, separator='/')} is not what was saved")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"


def structure_of(abstract: Any, shardings: Any) -> Any:
    """`abstract` shapes with the sharding of each array, as `Checkpoints.restore` takes them."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
