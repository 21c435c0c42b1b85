"""Kills and resumes a tiny run again and again at random moments, and compares what it gives with an undisturbed run.

    python -m tools.fault_campaign --cycles=100 --seed=0 --workdir=runs/faults

Each cycle starts the run (`configs/digits.py:tiny`, the stages encoder and stats), ends it by a fault, and sometimes
damages its newest checkpoint; a run that gets to its end is compared and the next begins from nothing. The faults:

  kill at a random moment      SIGKILL between the start and a little past the time that a whole run takes
  kill in a checkpoint write   SIGKILL as soon as an unfinished checkpoint is there
  kill at a stage's end        SIGKILL once a stage has begun to leave its weights, before it counts as finished
  ask to stop                  SIGTERM; must end in status 75, or whole

docs/reliability.md has the numbers of the campaign that was run.
"""

import argparse
import collections
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rae_jax.files import local_path, read_json_lines

STAGES = ("encoder", "stats")
STEPS = 200
OPTIONS = [
    "--config=configs/digits.py:tiny",
    f"--config.stages={STAGES!r}",
    f"--config.encoder.train.steps={STEPS}",
    "--config.data.num_workers=0",
    *(f"--config.evaluation.{name}=False" for name in ("judge", "linear_probe", "reconstruction", "frechet")),
]
COMPARED = ("loss", "gradient_norm", "learning_rate", "images_seen", "mean_variance")
DAMAGED_SHARE = 0.25  # of the cycles, if there are two checkpoints or more
PATIENCE = 600  # seconds that a run may take


def main() -> None:
    """Runs the campaign; exits with an error on the first run that differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=100, help="starts that a fault ends, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument(
        "--workdir", type=local_path, default=Path("runs/faults"), help="where the runs are; removed first"
    )
    options = parser.parse_args()
    directory = options.workdir
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    rng = random.Random(options.seed)

    for name in ("first", "whole"):  # the first also compiles
        began = time.monotonic()
        process = start(directory / name)
        process.join(PATIENCE)
        assert_ended_well(process.exitcode, directory / name)
    whole, seconds = outcome(directory / "whole"), time.monotonic() - began
    if outcome(directory / "first") != whole:
        sys.exit(f"two undisturbed runs in {directory} differ: {differences(outcome(directory / 'first'), whole)}")
    print(f"undisturbed: {seconds:.1f} s, {len(whole['metrics'])} records", flush=True)

    counts, runs, cycles, cycles_of_run = collections.Counter(), 0, 0, 0
    workdir = directory / "disturbed"
    while cycles < options.cycles or workdir.exists():
        fault = rng.choice(FAULTS) if cycles_of_run < 12 and cycles < options.cycles else leave_alone
        process = start(workdir)
        fault(process, workdir, rng, seconds)
        process.join(PATIENCE)
        if process.exitcode is None:
            sys.exit(f"cycle {cycles}: the run has not ended {PATIENCE} s after {fault.__doc__}; it is in {workdir}")
        if process.exitcode == 0:
            if (found := outcome(workdir)) != whole:
                sys.exit(f"cycle {cycles}: the run in {workdir} differs: {differences(found, whole)}")
            runs, cycles_of_run = runs + 1, 0
            shutil.rmtree(workdir)
            print(f"{cycles} cycles, {runs} runs to the end, all equal; {dict(counts)}", flush=True)
            continue
        allowed = (75, -signal.SIGTERM, 128 + signal.SIGTERM) if fault is ask_to_stop else (-signal.SIGKILL,)
        if process.exitcode not in allowed:
            sys.exit(f"cycle {cycles}: status {process.exitcode} after {fault.__doc__}; the run is in {workdir}")
        cycles, cycles_of_run = cycles + 1, cycles_of_run + 1
        counts[fault.__doc__] += 1
        if rng.random() < DAMAGED_SHARE and (damage := damage_newest(workdir, rng)):
            counts[damage] += 1
    print(json.dumps({"cycles": cycles, "runs": runs, "faults": dict(counts), "lost": 0}, indent=2))


def start(workdir: Path) -> multiprocessing.Process:
    """The run in a process of its own, forked from one that has the libraries loaded and has used none."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rae_jax.main", "sklearn.datasets"])
    process = context.Process(target=child, args=([*OPTIONS, f"--workdir={workdir}"], workdir.parent / "output.txt"))
    process.start()
    return process


def child(options: list[str], output: Path) -> None:
    """The command line `rae_jax.main`."""
    from absl import app

    from rae_jax import main as command
    from rae_jax.experiment import flags as experiment

    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["main", *options]  # ml_collections looks there for the fields of the config
    app.run(command.main, flags_parser=experiment.parse)


def leave_alone(process: multiprocessing.Process, workdir: Path, rng: random.Random, seconds: float) -> None:
    """nothing"""


def kill_at_random(process: multiprocessing.Process, workdir: Path, rng: random.Random, seconds: float) -> None:
    """kill at a random moment"""
    process.join(rng.uniform(0, 1.2 * seconds))
    process.kill()


def kill_in_a_write(process: multiprocessing.Process, workdir: Path, rng: random.Random, seconds: float) -> None:
    """kill in a checkpoint write"""
    skip = rng.randrange(3)

    def unfinished() -> bool:
        nonlocal skip
        found = any(any_glob(workdir / stage / "checkpoints", "*.orbax-checkpoint-tmp") for stage in STAGES)
        skip -= found
        return found and skip < 0

    kill_when(process, unfinished)


def any_glob(folder: Path, pattern: str) -> bool:
    """Whether `folder` has an entry of this name."""
    return next(folder.glob(pattern), None) is not None


def kill_at_the_end_of_a_stage(process: multiprocessing.Process, workdir: Path, rng: random.Random, s: float) -> None:
    """kill at a stage's end"""
    stage = workdir / next((name for name in STAGES if not (workdir / name / "finished.json").exists()), STAGES[-1])
    kill_when(process, lambda: (stage / "weights").exists())


def ask_to_stop(process: multiprocessing.Process, workdir: Path, rng: random.Random, seconds: float) -> None:
    """ask to stop"""
    process.join(rng.uniform(0, 1.2 * seconds))
    process.terminate()


FAULTS = (kill_at_random, kill_in_a_write, kill_at_the_end_of_a_stage, ask_to_stop)


def kill_when(process: multiprocessing.Process, condition: Callable[[], bool]) -> None:
    """Kills the process when the condition first holds; one that ends before it is left alone."""
    while process.is_alive():
        if condition():
            process.kill()
            return
        time.sleep(0.001)


def damage_newest(workdir: Path, rng: random.Random) -> str | None:
    """Damages a random file of the newest checkpoint of the stage under way, if there is one to fall back to."""
    for stage in STAGES:
        folder = workdir / stage / "checkpoints"
        if not folder.exists() or (workdir / stage / "finished.json").exists():
            continue
        steps = sorted((int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True)
        if len(steps) < 2:
            return None
        files = sorted(file for file in (folder / str(steps[0]) / "state").rglob("*") if file.is_file())
        file, how = rng.choice(files), rng.choice(("truncated file", "flipped bit", "missing file"))
        data = bytearray(file.read_bytes())
        if how == "missing file" or not data:
            file.unlink()
            return "missing file"
        if how == "truncated file":
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        return how
    return None


def outcome(workdir: Path) -> dict[str, object]:
    """What must not depend on faults: the metrics (timings aside) and the weights of every stage."""
    records = [record for _, record in read_json_lines(workdir / "metrics.jsonl")]
    metrics = {
        f"{record['stage']} {record['step']}": [record[name] for name in COMPARED if name in record]
        for record in records
        if any(name in record for name in COMPARED)
    }
    weights = {stage: (workdir / stage / "weights" / "weights.safetensors").read_bytes() for stage in STAGES}
    return {"metrics": metrics, "weights": weights}


def differences(found: dict[str, object], expected: dict[str, object]) -> str:
    """The first records that differ, and the stages whose weights do."""
    records = sorted(found["metrics"].keys() | expected["metrics"].keys())
    differing = [key for key in records if found["metrics"].get(key) != expected["metrics"].get(key)]
    stages = [stage for stage in STAGES if found["weights"][stage] != expected["weights"][stage]]
    return f"metrics of {differing[:5]}, weights of {stages}"


def assert_ended_well(status: int | None, workdir: Path) -> None:
    """Exits unless the undisturbed run did."""
    if status != 0:
        sys.exit(f"the undisturbed run in {workdir} ended with status {status}; see {workdir.parent / 'output.txt'}")


if __name__ == "__main__":
    main()
