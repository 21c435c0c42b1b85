import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from flax import linen as nn
from ml_collections import ConfigDict

from rae_jax.evaluation.metrics import Metric
from rae_jax.objectives.objective import Evaluation, Objective
from rae_jax.training import sharding
from rae_jax.training.checkpoint import NotSaved
from rae_jax.training.checkpoint_weights import find
from rae_jax.training.loop import Diverged, fit
from rae_jax.training.progress import RunLog
from rae_jax.training.state import TrainState
from rae_jax.training.stopping import Interrupted

EXAMPLE = {"x": jax.ShapeDtypeStruct((4, 3), jnp.float32)}


class CountedBatches:
    """Batch i is random numbers from seed i; can be told to do something before a batch."""

    def __init__(self, before=lambda position: None):
        self.position, self.seconds_waited, self._before = 0, 0.0, before

    def __next__(self):
        self._before(self.position)
        x = np.random.default_rng(self.position).normal(size=(4, 3)).astype(np.float32)
        self.position += 1
        return {"x": jax.device_put(x)}

    def state(self):
        return {"position": self.position}

    def restore(self, state):
        self.position = state["position"]


def regression(loss=lambda w, x: jnp.mean((x @ w - 1.0) ** 2)):
    optimizer = optax.adam(0.1)

    def init(key, batch):
        params = {"w": nn.LogicallyPartitioned(jax.random.normal(key, (3,)), ("embed",))}
        return TrainState.create(params, optimizer.init(params))

    def train_step(state, batch):
        value, gradient = jax.value_and_grad(lambda p: loss(p["w"], batch["x"]))(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": value}

    return Objective(init=init, train_step=train_step, frozen={})


def run(
    workdir: Path, *, steps=12, batches=None, objective=None, max_gradient_norm=0.0, log_every=1, load_initial=dict,
    pictures=lambda state, step: None, evaluate=lambda state: {}, seconds_at_peak=None, **changes,
):  # fmt: skip
    workdir.mkdir(exist_ok=True)
    train = ConfigDict(
        dict(batch_size=4, log_every=log_every, checkpoint_every=4, keep_checkpoints=3, pictures_every=0, steps=steps,
             max_gradient_norm=max_gradient_norm, max_loss=0.0, evaluate_every=0, best_metric="",
             max_skipped_steps=0, profile_step=0, keep_every_steps=0, ema_decay=0.9, more_ema_decays=()) | changes
    )  # fmt: skip
    log = RunLog(workdir, active=True)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with sharding.use(mesh):
        return fit(
            objective or regression(), train, stage="toy", total_steps=steps, key=jax.random.key(0),
            batches=batches or CountedBatches(), example=EXAMPLE, frozen={}, load_initial=load_initial, mesh=mesh,
            directory=workdir / "toy", config={}, components={"toy": ""}, log=log, on_pictures=pictures,
            on_evaluation=evaluate, seconds_at_peak=seconds_at_peak,
        )  # fmt: skip


def losses(workdir: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def test_a_run_that_is_cut_off_and_started_again_equals_one_that_was_not(tmp_path):
    def die(position):
        if position == 10:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", batches=CountedBatches(die))
    again = run(tmp_path / "cut")
    np.testing.assert_array_equal(again.params["w"], whole.params["w"])
    np.testing.assert_array_equal(again.opt_state[0].nu["w"], whole.opt_state[0].nu["w"])
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "cut")] == list(range(1, 13))


def test_nothing_but_batches_and_metrics_moves_between_host_and_devices(tmp_path):
    """A number or array that a step took from the host unasked would be a transfer at every step."""
    guard = contextlib.ExitStack()

    def guarded_from_5_to_11(position):
        if position == 5:
            guard.enter_context(jax.transfer_guard("disallow"))
        if position == 11:
            guard.close()

    whole = run(tmp_path / "guarded", batches=CountedBatches(guarded_from_5_to_11))
    assert int(whole.step) == 12
    with pytest.raises(Exception, match="Disallowed host-to-device"), jax.transfer_guard("disallow"):
        jax.jit(jnp.add)(np.ones(2), np.ones(2))  # the guard works here


def test_sigterm_saves_a_checkpoint_and_asks_to_be_started_again(tmp_path):
    def ask(position):
        if position == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        run(tmp_path / "asked", batches=CountedBatches(ask))
    assert stopped.value.code == 75
    assert losses(tmp_path / "asked")[-1][0] == 6
    again, whole = run(tmp_path / "asked"), run(tmp_path / "whole")
    np.testing.assert_array_equal(again.params["w"], whole.params["w"])
    assert losses(tmp_path / "asked") == losses(tmp_path / "whole")


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, capsys):
    whole = run(tmp_path)
    newest = tmp_path / "toy" / "checkpoints" / "12"
    for file in (newest / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    capsys.readouterr()
    again = run(tmp_path)
    said = capsys.readouterr().out
    assert "12 cannot be read" in said and "continuing from step 8" in said
    assert (newest.parent / "12.unreadable" / "state").is_dir()  # kept: it may be whole on another machine
    np.testing.assert_array_equal(again.params["w"], whole.params["w"])


def test_no_readable_checkpoint_is_an_error_and_nothing_is_trained(tmp_path):
    run(tmp_path)
    for file in (tmp_path / "toy" / "checkpoints").rglob("*"):
        if file.is_file() and "state" in file.parts:
            file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint under .* can be read"):
        run(tmp_path, steps=16)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_steps(tmp_path):
    def breaks(w, x):
        return jnp.where(x[0, 0] == np.random.default_rng(6).normal(size=(4, 3)).astype(np.float32)[0, 0], jnp.nan, 1.0)

    with pytest.raises(Diverged, match=r"between steps 6 and 7; the last checkpoint is of step 4"):
        run(tmp_path, objective=regression(breaks))


def test_the_step_compiles_once_through_resume_pictures_and_checkpoints(tmp_path):
    compiled = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(kwargs.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(tmp_path)
    finally:
        jax.monitoring.clear_event_listeners()
    assert sum(name is not None and "train_step" in name for name in compiled) == 1, compiled


def test_the_last_pictures_are_taken_once_and_at_the_end(tmp_path):
    taken = []
    run(tmp_path, pictures=lambda state, step: taken.append((int(state.step), step)))
    assert taken == [(12, 12)]


def judged(better):
    """The toy objective, judged by the "quality" that a test's `evaluate` gives."""
    plain = regression()
    return Objective(
        init=plain.init, train_step=plain.train_step, frozen={},
        evaluation=Evaluation(metrics=(Metric("quality", better, compute=None),), measure=None),
    )  # fmt: skip


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "toy" / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.parametrize(("better", "best", "name"), [("higher", 4, "quality"), ("lower", 6, "quality_5000")])
def test_the_best_checkpoint_is_kept_beside_the_newest_and_a_resumed_run_remembers_it(better, best, name, tmp_path):
    quality = {2: 0.3, 4: 0.9, 6: 0.1, 8: 0.5, 10: 0.6, 12: 0.4, 14: 0.5, 16: 0.6}
    arguments = dict(
        objective=judged(better), evaluate=lambda state: {name: quality[int(state.step)]}, evaluate_every=2,
        best_metric="quality", keep_checkpoints=2, checkpoint_every=100,
    )  # fmt: skip
    run(tmp_path, **arguments)
    assert kept(tmp_path) == [best, 10, 12]
    assert int(run(tmp_path, steps=16, **arguments).step) == 16
    assert kept(tmp_path) == [best, 14, 16]
    folder = tmp_path / "toy" / "checkpoints"
    assert find(folder / "best").directory == folder / str(best) and find(folder).directory == folder / "16"


def test_milestones_are_made_and_kept_for_ever_whatever_is_asked_for_later(tmp_path):
    run(tmp_path, keep_every_steps=3, keep_checkpoints=1)
    assert kept(tmp_path) == [3, 6, 9, 12]
    run(tmp_path, steps=20, keep_checkpoints=1)
    assert kept(tmp_path) == [3, 6, 9, 12, 20]


def test_evaluations_are_recorded_at_their_period_and_the_end_once_however_the_run_is_cut(tmp_path):
    def die(position):
        if position == 7:
            raise KeyboardInterrupt

    seen = []
    arguments = dict(objective=judged("higher"), evaluate_every=5, evaluate=lambda state: seen.append(state.step) or
                     {"quality": float(state.params["w"][0])})  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, batches=CountedBatches(die), **arguments)
    final = run(tmp_path, **arguments)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluated = {r["step"]: r["evaluation/quality"] for r in records if "evaluation/quality" in r}
    assert list(evaluated) == [5, 10, 12] == [int(step) for step in seen]
    assert evaluated[12] == float(final.params["w"][0])


def test_a_gradient_norm_beyond_its_bound_stops_the_run_before_the_next_checkpoint_with_the_likely_cause(tmp_path):
    plain = regression()

    def train_step(state, batch):
        new, metrics = plain.train_step(state, batch)
        return new, metrics | {"gradient_norm": jnp.where(state.step == 6, 2e5, 1.0)}

    objective = Objective(init=plain.init, train_step=train_step, frozen={}, likely_cause="It was the weather")
    stopped = r"reached 2e\+05, beyond config.toy.train.max_gradient_norm=1000, between steps 6 and 7; the last "
    with pytest.raises(Diverged, match=stopped + r"checkpoint is of step 4. It was the weather\. "):
        run(tmp_path / "bounded", objective=objective, max_gradient_norm=1e3)
    run(tmp_path / "free", objective=objective)


def test_a_metric_outside_what_is_expected_is_a_warning_once(tmp_path, capsys):
    plain = regression()

    def train_step(state, batch):
        new, metrics = plain.train_step(state, batch)
        return new, metrics | {"latent_deviation": jnp.where(state.step < 4, 1.0, 7.0)}

    objective = Objective(
        init=plain.init,
        train_step=train_step,
        frozen={},
        expected={"latent_deviation": (0.5, 2.0), "absent": (0.0, 1.0)},
        unexpected="look at the statistics",
    )
    run(tmp_path, objective=objective, log_every=1)
    lines = capsys.readouterr().out.splitlines()
    warned = [line for line in lines if "latent_deviation" in line and "usual" in line]
    assert len(warned) == 1
    assert "latent_deviation is 7 at step 5, where 0.5 to 2 is usual: look at the statistics" in warned[0]


def test_the_loop_does_not_run_ahead_of_the_devices(tmp_path):
    """So that a stop is heeded soon, however seldom there is a report: batches are asked for as steps are made."""
    asked, plain = [], regression()

    def train_step(state, batch):
        def work(_, x):
            return jnp.tanh(x @ x)

        late = jax.lax.fori_loop(0, 20, work, jnp.eye(256) * (1 + batch["x"][0, 0]))
        new, metrics = plain.train_step(state, batch)
        return new, metrics | {"loss": metrics["loss"] + 0 * late[0, 0]}

    objective = Objective(init=plain.init, train_step=train_step, frozen={})
    batches = CountedBatches(lambda position: asked.append(time.monotonic()))
    run(tmp_path, objective=objective, batches=batches, log_every=40, steps=40, checkpoint_every=40)
    ended = time.monotonic()
    # Asked for all at once, those of the middle half would take no part of the time.
    assert asked[30] - asked[10] > 0.2 * (ended - asked[0])


def test_a_spike_between_two_reports_is_found_before_a_checkpoint_is_made(tmp_path):
    plain = regression()

    def train_step(state, batch):
        new, metrics = plain.train_step(state, batch)
        return new, metrics | {"gradient_norm": jnp.where(state.step == 5, jnp.nan, 1.0)}

    objective = Objective(init=plain.init, train_step=train_step, frozen={})
    with pytest.raises(Diverged, match=r"gradient_norm became non-finite between steps 4 and 8; .* of step 4"):
        run(tmp_path, objective=objective, log_every=10)


def test_a_stage_loads_what_it_starts_from_once_and_resumes_without(tmp_path):
    plain, loads = regression(), []
    objective = Objective(
        init=plain.init, train_step=plain.train_step, frozen={}, initial={"other": lambda key: {"w": jnp.zeros(3)}},
        begin=lambda params, initial: initial["other"],
    )  # fmt: skip

    def load():
        loads.append("other")
        return {"other": {"w": jnp.full(3, 100.0)}}

    run(tmp_path, objective=objective, steps=4, load_initial=load)
    final = run(tmp_path, objective=objective, steps=8, load_initial=load)
    assert loads == ["other"]
    assert np.all(final.params["w"] > 90)


def breaks_at(*steps, objective=None):
    """The regression, but the gradient of these steps (counted from 0) is not a number."""

    def loss(w, x):
        firsts = [np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)[0, 0] for step in steps]
        broken = jnp.any(x[0, 0] == jnp.asarray(firsts))
        return jnp.mean((x @ w - 1.0) ** 2) * jnp.where(broken, jnp.nan, 1.0)

    return regression(loss)


def test_a_step_that_is_not_finite_changes_nothing_but_the_count_and_the_next_goes_on(tmp_path, capsys):
    before = run(tmp_path / "before", steps=6)
    skipped = run(tmp_path / "skipped", steps=7, objective=breaks_at(6), max_skipped_steps=2)
    for kept, expected in zip(
        jax.tree.leaves((skipped.params, skipped.opt_state)), jax.tree.leaves((before.params, before.opt_state)),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(kept, expected)
    assert int(skipped.step) == 7
    assert "1 of the steps 7 to 7 skipped: loss or gradient not finite" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "skipped" / "metrics.jsonl").read_text().splitlines()]
    assert [r["skipped_steps"] for r in records if "skipped_steps" in r] == [1.0]

    goes_on = run(tmp_path / "goes_on", steps=12, objective=breaks_at(6, 7), max_skipped_steps=2)
    assert int(goes_on.step) == 12 and np.all(np.isfinite(goes_on.params["w"]))
    assert [step for step, _ in losses(tmp_path / "goes_on")] == [1, 2, 3, 4, 5, 6, 9, 10, 11, 12]


def test_more_steps_in_a_row_that_are_not_finite_than_allowed_stop_the_run(tmp_path):
    stopped = r"loss became non-finite, in 3 steps in a row between steps 4 and 8; the last checkpoint is of step 4"
    with pytest.raises(Diverged, match=stopped):
        run(tmp_path, objective=breaks_at(5, 6, 7), max_skipped_steps=2, log_every=10)


def newest_files(workdir):
    """The files of the newest checkpoint's arrays, the largest first."""
    files = [f for f in (workdir / "toy" / "checkpoints" / "12").rglob("*") if f.is_file() and "state" in f.parts]
    return sorted(files, key=lambda f: -f.stat().st_size)


@pytest.fixture(scope="module")
def twelve_steps(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("twelve") / "run"
    return workdir, run(workdir)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


DAMAGE = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "bit-flipped": flip,
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
}


# Orbax drops what it was reading when it meets the damage.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGE)
def test_any_file_of_the_newest_checkpoint_may_be_damaged_and_the_result_is_the_same(twelve_steps, tmp_path, damage):
    finished, whole = twelve_steps
    for i in range(len(newest_files(finished))):
        workdir = tmp_path / str(i)
        shutil.copytree(finished, workdir)
        DAMAGE[damage](newest_files(workdir)[i])
        again = run(workdir)
        np.testing.assert_array_equal(again.params["w"], whole.params["w"])


def test_a_flipped_bit_in_a_weight_is_noticed_though_the_file_can_be_read(twelve_steps, tmp_path, capsys):
    finished, whole = twelve_steps
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    sums = workdir / "toy" / "checkpoints" / "12" / "checksums" / "metadata"
    *others, params, step = json.loads(sums.read_text())
    sums.write_text(json.dumps([*others, params ^ 1, step]))
    again = run(workdir)
    said = capsys.readouterr().out
    assert "params/w is not what was saved" in said and "continuing from step 8" in said
    np.testing.assert_array_equal(again.params["w"], whole.params["w"])


# As the test above.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before_it_whole(tmp_path):
    """Full by a limit on the size of files, which makes the storage library itself fail, in its own thread."""
    big = regression()
    big = dataclasses.replace(big, init=lambda key, batch: _with_ballast(regression().init(key, batch)))

    def limit(position):
        if position == 6:
            while not (tmp_path / "full" / "toy" / "checkpoints" / "4").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(NotSaved, match=r"the checkpoints of steps \[4\] are whole"):
            run(tmp_path / "full", objective=big, batches=CountedBatches(limit), keep_checkpoints=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert [
        path.name for path in (tmp_path / "full" / "toy" / "checkpoints").glob("[0-9]*") if path.name.isdigit()
    ] == ["4"]
    again, whole = run(tmp_path / "full", objective=big), run(tmp_path / "whole", objective=big)
    np.testing.assert_array_equal(again.params["w"], whole.params["w"])


def _with_ballast(state):
    return state.replace(ema_params={"ballast": jax.random.normal(jax.random.key(1), (100_000,))})


SECOND_SIGINT = """
import os, signal, sys, time
from rae_jax.training.checkpoint import NotSaved
from rae_jax.training.stopping import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    print("asked", stop.agreed(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def test_a_second_sigint_ends_the_process_at_once():
    ended = subprocess.run([sys.executable, "-c", SECOND_SIGINT], capture_output=True, text=True, timeout=50)
    assert ended.stdout.strip() == "asked True"
    assert ended.returncode == -signal.SIGINT and "Traceback" not in ended.stderr


def test_the_utilisation_is_the_time_at_peak_over_the_time_of_a_step(tmp_path):
    run(tmp_path / "known", steps=4, seconds_at_peak=1e-6)
    run(tmp_path / "unknown", steps=4)
    known, unknown = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("known", "unknown")
    )
    reports = [record for record in known if "step_seconds" in record]
    assert len(reports) == 4
    for record in reports:
        assert record["model_flops_utilisation"] == pytest.approx(1e-6 / record["step_seconds"])
    assert not any("model_flops_utilisation" in record for record in unknown)


def profiled(workdir):
    np.save(workdir.parent / "w.npy", run(workdir, steps=6, profile_step=2).params["w"])


def test_three_steps_are_traced_on_demand_and_the_run_goes_on(tmp_path):
    plain = run(tmp_path / "plain", steps=6)
    # A profile holds all programs of its process: here, those of the tests before.
    process = runs.FORKS.Process(target=profiled, args=(tmp_path / "profiled",))
    process.start()
    process.join(100)
    assert process.exitcode == 0
    assert list((tmp_path / "profiled" / "toy" / "profile").rglob("*.xplane.pb"))
    assert not (tmp_path / "plain" / "toy" / "profile").exists()
    np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), plain.params["w"])


def test_nothing_moves_between_host_and_devices_by_itself_from_step_to_step(tmp_path):
    def guard(position):
        jax.config.update(
            "jax_transfer_guard", {1: "disallow", 3: "allow"}.get(position, jax.config.jax_transfer_guard)
        )

    try:
        state = run(tmp_path, steps=4, batches=CountedBatches(guard))
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert int(state.step) == 4
