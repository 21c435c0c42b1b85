"""A run of several hosts on this machine, long enough to lose something: preempted, killed, and gone on with by fewer.

    python -m tools.long_rehearsal --workdir=runs/long_rehearsal

1. 200,000 crops of photographs are written as JPEG files and prepared as ArrayRecord shards (`prepare_imagenet`).
2. Four processes train a small decoder on them for 2,000 steps, with two data workers each, checkpoints, evaluation on
   held-out images while it trains and at its end. Nothing disturbs them.
3. The same again, disturbed: SIGTERM to one of the processes after steps 300, 700 and 1,100, SIGKILL of one after step
   1,400, each time started again, the last time as two processes with two devices each.

The command fails unless both runs have the same losses, the same evaluations and the same weights but for rounding; the
same steps in their metrics and among their checkpoints, the same files; every process has ended with the status
that a launcher starts again; no process that a run has started outlives it; and the memory of none grows while it
trains. The memory of every process is written to `memory.json` and drawn in `memory.png`. The last line printed is the
outcome, as JSON.

Linux only: memory is read in /proc. Half an hour on two cores. docs/reliability.md has the figures.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from rae_jax.files import local_path
from tools import prepare_imagenet, rehearse
from tools.photographs import photographs

IMAGE_SIZE = 32
PROCESSES, WORKERS = 4, 2
TERM, KILL = signal.SIGTERM, signal.SIGKILL
FAULTS = ((300, 1, TERM), (700, 3, TERM), (1100, 0, TERM), (1400, 2, KILL))  # after which step, to which process, what
STEPS, LOG_EVERY, CHECKPOINT_EVERY, MILESTONES, EVALUATE_EVERY = 2000, 10, 50, 500, 500
HELD_OUT_SHARE = 0.01
PLACES = [(process, 0) for process in range(PROCESSES)]  # of the devices of a mesh
PLACES_OF_FEWER = [(process // 2, process % 2) for process in range(PROCESSES)]
WEIGHTS_APART = 1e-3  # of their norm, after all steps
ENDED_WITHIN = 5.0  # seconds after its processes in which everything that a run has started must have ended
SETTLED = 30.0  # seconds after which a process has compiled its step
LONG = 300.0  # seconds that a process must last for its growth to be looked at
GROWTH = 64  # MiB, see `Memory.growth`: of evaluation's programs 30; had a batch a step been kept, it would be more


def arguments(data: Path) -> list[str]:
    """Flags of `rae_jax.main`: stage 1 of a small autoencoder on the shards."""
    return [
        "--config=configs/digits.py:tiny",
        "--config.stages=('decoder',)",
        "--config.encoder.weights=random",
        "--config.data.source=tfds:imagenet_folder",
        f"--config.data.path={data}",
        "--config.data.test_split=validation",
        f"--config.data.num_workers={WORKERS}",
        "--config.decoder.train.transform=random_crop",
        "--config.decoder.train.batch_size=32",
        f"--config.decoder.train.steps={STEPS}",
        f"--config.decoder.train.log_every={LOG_EVERY}",
        f"--config.decoder.train.checkpoint_every={CHECKPOINT_EVERY}",
        f"--config.decoder.train.keep_every_steps={MILESTONES}",
        f"--config.decoder.train.evaluate_every={EVALUATE_EVERY}",
        "--config.decoder.train.evaluation_images=500",
        f"--config.decoder.train.optimizer.decay_end_step={STEPS}",
        "--config.evaluation.judge=False",
        "--config.evaluation.linear_probe=False",
        "--config.evaluation.frechet=False",
    ]


def prepare(directory: Path, count: int) -> Path:
    """The shards of `count` different crops of photographs and of a few held out; those there are, are taken.

    The classes are the photographs. A crop is a square of a random place and size, shrunk to 40 pixels.
    """
    done = directory / "prepared.json"
    if done.exists() and json.loads(done.read_text())["count"] == count:
        return Path(json.loads(done.read_text())["path"])
    shutil.rmtree(directory, ignore_errors=True)
    random, images = np.random.default_rng(0), list(photographs().items())
    for split, number in (("train", count), ("val", max(len(images), round(count * HELD_OUT_SHARE)))):
        for name, _ in images:
            (directory / "images" / split / name).mkdir(parents=True)
        for i in range(number):
            name, pixels = images[i % len(images)]
            side = int(random.integers(IMAGE_SIZE, min(pixels.shape[:2]) // 2))
            top, left = (int(random.integers(0, length - side + 1)) for length in pixels.shape[:2])
            crop = Image.fromarray(pixels[top : top + side, left : left + side]).resize((40, 40))
            crop.save(directory / "images" / split / name / f"{i:06}.jpg", "JPEG", quality=90)
    path = prepare_imagenet.prepare(directory / "images", directory / "shards")
    shutil.rmtree(directory / "images")
    done.write_text(json.dumps({"count": count, "path": str(path)}))
    return path


@dataclasses.dataclass
class Memory:
    """What one process held: `name` and since when, in seconds; MiB at moments, those shared divided among sharers."""

    name: str
    times: list[float] = dataclasses.field(default_factory=list)
    mebibytes: list[float] = dataclasses.field(default_factory=list)

    def growth(self) -> float | None:
        """MiB that it had more in its last third than in the third before, once settled; None if it ended soon."""
        if self.times[-1] - self.times[0] < LONG:
            return None
        held = [held for at, held in zip(self.times, self.mebibytes, strict=True) if at > self.times[0] + SETTLED]
        third = len(held) // 3
        return float(np.median(held[-third:]) - np.median(held[-2 * third : -third]))


class Watch:
    """Looks at the memory of a run's processes, and at those of their children, until it is left."""

    def __init__(self, run: rehearse.Run, began: float, start: int):
        self._hosts = [process.pid for process in run.processes]
        self._began, self._start = began, start
        self.seen: dict[tuple[int, str], Memory] = {}  # by number and start time: numbers come again
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._left.wait(1.0):
            for host, root in enumerate(self._hosts):
                for process in tree(root):
                    self._look_at(process, host, root)

    def _look_at(self, process: int, host: int, root: int) -> None:
        try:
            began = started(process)
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            held = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
        except (OSError, StopIteration):  # it has ended
            return
        kind = "process" if process == root else "worker of"
        memory = self.seen.setdefault((process, began), Memory(f"start {self._start}, {kind} {host}"))
        memory.times.append(time.monotonic() - self._began)
        memory.mebibytes.append(held)

    def orphans(self) -> list[str]:
        """What it has seen and is still there."""
        deadline = time.monotonic() + ENDED_WITHIN
        while there := [memory.name for (process, began), memory in self.seen.items() if alive(process, began)]:
            if time.monotonic() > deadline:
                return there
            time.sleep(0.1)
        return []


def tree(process: int) -> Iterator[int]:
    """The process and all its children's children, as far as they are there."""
    yield process
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{process}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return
    for child in children:
        yield from tree(child)


def started(process: int) -> str:
    """When the process was started, in the kernel's ticks; OSError if there is none, or it has ended."""
    state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    if state == "Z":
        raise ProcessLookupError(process)
    return rest[18]


def alive(process: int, began: str) -> bool:
    """Whether the process that was started then is there."""
    try:
        return started(process) == began
    except OSError:
        return False


def complete(run: rehearse.Run, watch: Watch, allowed: tuple[int, ...], what: str) -> list[int | None]:
    """Waits until a run has ended; its statuses.

    Raises:
      ValueError: one has ended otherwise than allowed, or something outlives it.
    """
    with watch:
        statuses = run.ended(what, allowed)
    if orphans := watch.orphans():
        raise ValueError(f"{what}: {ENDED_WITHIN} s after the run there still are {orphans}")
    return statuses


def files(workdir: Path) -> set[str]:
    """What a run has left, but for compiled programs, event files, and what the storage below Orbax names itself."""
    left = set()
    for path in workdir.rglob("*"):
        parts = path.relative_to(workdir).parts
        if parts[0] != "compiled" and "tfevents" not in path.name and path.is_file():
            checkpoint = parts.index("checkpoints") + 2 if "checkpoints" in parts else None
            left.add("/".join(parts[:checkpoint]))
    return left


def compare(whole: Path, disturbed: Path) -> dict[str, float]:
    """The largest relative deviations of one run's numbers from the other's.

    Raises:
      ValueError: a number or a file is missing, or one differs by more than rounding.
    """
    expected = rehearse.numbers(whole)
    largest, where = rehearse.largest_deviation(expected, rehearse.numbers(disturbed))
    if other := files(whole) ^ files(disturbed):
        raise ValueError(f"only one run has left {sorted(other)}")
    weights = [load_file(workdir / "decoder/weights/weights.safetensors") for workdir in (whole, disturbed)]
    norms = [np.sqrt(sum(float(np.square(x, dtype=np.float64).sum()) for x in w.values())) for w in weights]
    apart = np.sqrt(sum(float(np.square(x - weights[1][k], dtype=np.float64).sum()) for k, x in weights[0].items()))
    if not apart / norms[0] <= WEIGHTS_APART:
        raise ValueError(f"the weights are {apart / norms[0]:.2g} of their norm apart")
    return {
        "numbers": len(expected), "largest_deviation": largest, "at": where, "weights_apart": apart / norms[0]
    }  # fmt: skip


def rehearse_long(data: Path, directory: Path) -> dict[str, object]:
    """Both runs, and how they compare.

    Raises:
      ValueError: see the module.
    """
    began, watches, seconds, endings = time.monotonic(), [], {}, {}
    shape, options = (PROCESSES, 1, 1), arguments(data)
    whole, disturbed = directory / "undisturbed", directory / "disturbed"

    def start(workdir: Path, places: rehearse.Places) -> tuple[rehearse.Run, Watch]:
        run = rehearse.Run(workdir, options, shape, places)
        watches.append(Watch(run, began, len(watches)))
        return run, watches[-1]

    complete(*start(whole, PLACES), (0,), "undisturbed")
    seconds["undisturbed"] = round(time.monotonic() - began)
    again = time.monotonic()
    for step, victim, number in FAULTS:
        run, watch = start(disturbed, PLACES)
        hit = threading.Thread(target=strike, args=(run, disturbed, step, victim, number))
        hit.start()
        allowed = (75,) if number == TERM else (75, -signal.SIGABRT, -KILL)
        what = f"{signal.Signals(number).name} to process {victim} after step {step}"
        endings[what] = complete(run, watch, allowed, what)
        hit.join()
        print(f"{what}: ended with {endings[what]}", flush=True)
    complete(*start(disturbed, PLACES_OF_FEWER), (0,), "gone on with by two processes")
    seconds["disturbed"] = round(time.monotonic() - again)
    memories = [memory for watch in watches for memory in watch.seen.values()]
    write_memory(memories, directory)
    outcome = compare(whole, disturbed)
    growths = [(growth, memory.name) for memory in memories if (growth := memory.growth()) is not None]
    most, grown = max(growths)
    if most > GROWTH:
        raise ValueError(f"{grown} grew by {most:.0f} MiB; see {directory / 'memory.png'}")
    return outcome | {
        "endings": endings, "processes_seen": len(memories), "orphans": 0, "processes_measured": len(growths),
        "largest_growth_mebibytes": round(most, 1), "grown": grown, "seconds": seconds,
    }  # fmt: skip


def strike(run: rehearse.Run, workdir: Path, step: int, victim: int, number: int) -> None:
    """Sends the signal to one process of the run once the step is recorded."""
    rehearse.wait_for_step(workdir, step, run)
    os.kill(run.processes[victim].pid, number)


def write_memory(memories: list[Memory], directory: Path) -> None:
    """`memory.json` and its plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    (directory / "memory.json").write_text(json.dumps([dataclasses.asdict(memory) for memory in memories]))
    figure, axes = plt.subplots(figsize=(9, 4))
    for memory in memories:
        kind, colour = ("data workers", "tab:orange") if "worker" in memory.name else ("training processes", "tab:blue")
        axes.plot(memory.times, memory.mebibytes, color=colour, linewidth=0.8, label=kind)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys())
    axes.set(xlabel="seconds", ylabel="MiB of a process (Pss)", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(directory / "memory.png", dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000, help="how many there are to train on")
    parser.add_argument(
        "--workdir", type=local_path, default=Path("runs/long_rehearsal"), help="the runs are there, anew each time"
    )
    options = parser.parse_args()
    try:
        data = prepare(options.workdir / "data", options.images)
        for old in ("undisturbed", "disturbed"):
            shutil.rmtree(options.workdir / old, ignore_errors=True)
        outcome = rehearse_long(data, options.workdir)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(json.dumps(outcome))


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    main()
