"""Checkpoints: the whole state, the position in the data and the config, written while training goes on.

`checkpoint_weights.py` reads the averaged weights in one without the run that made it.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from rae_jax.training import sharding
from rae_jax.training.checkpoint_weights import About, about, goodness, steps_in
from rae_jax.training.state import TrainState

SAVED = ("step", "params", "ema_params", "more_ema", "opt_state", "discriminator")  # of a state


class NotSaved(OSError):
    """A checkpoint could not be written; those before it are whole."""


class Checkpoints:
    """The last few checkpoints of one stage, the best and the milestones, a directory per step under `directory`.

    Saving returns at once and goes on in the background; `close` waits for it.

    Args:
      keep: how many of the newest are kept.
      keep_every: those of multiples of so many steps are kept for ever, whatever it is later; 0: none.
      about: what each of them says of itself: what its weights are of, and the metric by which one more is kept.
    """

    def __init__(self, directory: Path, *, keep: int, keep_every: int, config: dict[str, Any], about: About):
        self._config, self._about, self._keep_every, self._directory = config, about, keep_every, directory.absolute()
        self._milestones = _Milestones(self._directory)
        # Apart from each other: a newest checkpoint that is not the best is still the one to continue from.
        kept = [policies.LatestN(keep), self._milestones]
        best = None if about["best"] is None else goodness(*about["best"])
        if best is not None:
            kept.append(policies.BestN(get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False))
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                best_fn=best,  # without it the metrics of checkpoints made before this start are not read
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
        milestone = bool(self._keep_every) and step % self._keep_every == 0
        if milestone:
            self._milestones.steps.add(step)
        with self._said_plainly():
            self._manager.save(
                step,
                metrics=metrics,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(parts),
                    data=ocp.args.JsonSave(data_position),
                    config=ocp.args.JsonSave(self._config),
                    about=ocp.args.JsonSave({**self._about, "milestone": milestone}),
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
            left = steps_in(self._directory)
            raise NotSaved(
                f"a checkpoint could not be written under {self._directory} ({_first_line(error)}); "
                + (f"the checkpoints of steps {left} are whole. " if left else "there is none before it. ")
                + "Look at the space left there (df) and the permissions, then run the same command again"
            ) from error

    def restore(self, structure: TrainState, warn: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that every process can read, laid out as `structure` says, or None if there is none.

        `structure` holds a `jax.ShapeDtypeStruct` with a sharding for every array; the checkpoint may come from any
        other mesh. One that a process cannot read is named through `warn`, and all processes try the one before it.
        Those that were passed over are set aside, as `<step>.unreadable`.

        Raises:
          ValueError: there are checkpoints, and none can be read.
        """
        steps = self._steps_of_first_process()
        for tried, step in enumerate(steps):
            failure = ""
            try:
                parts, sums, position = self._read(step, structure)
            except Exception as error:  # whatever a broken file raises, the checkpoint before it may be whole
                failure = _first_line(error)
            # Before anything that processes compute together, which would wait for one that has failed.
            if sharding.on_every_process(not failure):
                failure = _difference(checksums(parts), sums, parts)
            if not sharding.on_every_process(not failure):
                reason = failure or "by another process"
                warn(f"checkpoint {self._directory / str(step)} cannot be read ({reason})")
                continue
            if tried:
                warn(f"continuing from step {step} instead; what could not be read is kept as *.unreadable")
                self._set_aside(steps[:tried])
            return structure.replace(**parts), position
        if steps:
            raise ValueError(
                f"no checkpoint under {self._directory} can be read (tried steps {steps}); "
                "restore the directory from a copy, or move it away to train this stage from the start"
            )
        return None

    def _steps_of_first_process(self) -> list[int]:
        """The steps on disk, newest first. A shared file system may show them to one process later than to another."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        count = sharding.of_first_process(len(steps))
        return [sharding.of_first_process(step) for step in (steps + [0] * count)[:count]]

    def _read(self, step: int, structure: TrainState) -> tuple[dict[str, Any], list[int], dict[str, Any]]:
        """What this process holds of a checkpoint, the checksums, and the position in the data.

        It waits for no other process, as Orbax's manager does: one that fails leaves none behind.
        """
        directory = self._directory / str(step)
        handler = ocp.StandardCheckpointHandler()
        try:
            parts = handler.restore(
                epath.Path(directory / "state"), args=ocp.args.StandardRestore(_trained_parts(structure))
            )
        finally:
            handler.close()
        sums, position = (json.loads((directory / name / "metadata").read_text()) for name in ("checksums", "data"))
        return parts, sums, position

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Keeps checkpoints under another name: one that this machine cannot read now may be whole."""
        sharding.barrier("unreadable")
        if jax.process_index() == 0:
            for step in steps:
                aside = self._directory / f"{step}.unreadable"
                shutil.rmtree(aside, ignore_errors=True)
                (self._directory / str(step)).rename(aside)
        sharding.barrier("set aside")
        self._manager.reload()

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


class _Milestones(policies.PreservationPolicy):
    """Keeps the checkpoints whose `steps` are milestones; those of earlier starts say so themselves."""

    def __init__(self, directory: Path):
        self.steps = {step for step in steps_in(directory) if about(directory / str(step)).get("milestone")}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: policies.PreservationContext) -> list[bool]:
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


def _trained_parts(state: TrainState) -> dict[str, Any]:
    parts = {name: getattr(state, name) for name in SAVED}
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


def _difference(found: jax.Array, saved: list[int], tree: Any) -> str:
    """The first array that is not what was saved, in words; "" if there is none."""
    if len(saved) != len(found):
        return f"the number of arrays, {len(found)}, is not what was saved"
    for (path, _), now, then in zip(jax.tree.leaves_with_path(tree), jax.device_get(found), saved, strict=True):
        if now != then:
            return f"{jax.tree_util.keystr(path, simple=True, separator='/')} is not what was saved"
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"


def structure_of(abstract: Any, shardings: Any) -> Any:
    """`abstract` shapes with the sharding of each array, as `Checkpoints.restore` takes them."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
