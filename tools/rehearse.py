"""Rehearses a run on a TPU slice on this machine's CPU: its processes, its mesh in its own order, and its losses.

    python -m tools.rehearse --topology=v5p:4x4x4 --config.mesh.fsdp=16
    python -m tools.rehearse --topology=v5e:4x4 --preempt_at=8 --config=configs/digits.py:tiny --config.mesh.data=-1

As many processes as the slice has hosts, each with as many CPU devices as its host has chips, lay these into the mesh
in the order in which JAX lays the slice's own (libtpu's description of it; no TPU is needed). They run the config, with
data workers, checkpoints, evaluation and samples if it has them, and every loss and evaluation is compared with that of
one process with one device. Without `--config` it is a small copy of the flagship: `digits.py:tiny`, the flow alone, on
the latents of random weights, in batches of one image a device and more.

With `--preempt_at` one of the processes gets SIGTERM after that step: all must end with status 75, saved, and are
started again. The last line printed is the outcome, as JSON.
"""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from jax._src import cache_key
from jax.sharding import AxisType, Mesh

from rae_jax import main as command
from rae_jax.costs.compile_report import mesh_over
from rae_jax.experiment import flags as experiment
from rae_jax.files import read_json_lines
from rae_jax.main import TOPOLOGY
from rae_jax.sampling.samples import read_samples
from rae_jax.training import sharding

PREEMPT_AT = flags.DEFINE_integer("preempt_at", 0, "Step after which one process is asked to stop; 0: never.")
OWN = ("topology", "preempt_at", "workdir")  # flags that the runs do not get
FLAGSHIP = (
    "--config=configs/digits.py:tiny",
    "--config.stages=('flow',)",
    "--config.encoder.weights=random",
    "--config.decoder.weights=random",
    "--config.stats.weights=identity",
    "--config.data.num_workers=1",
    "--config.flow.train.batch_size=64",
    "--config.flow.train.steps=6",
    "--config.flow.train.checkpoint_every=3",
    "--config.flow.train.evaluate_every=6",
    "--config.sampling.num_steps=2",
    "--config.evaluation.judge=False",
    "--config.evaluation.linear_probe=False",
)
ONE_DEVICE = ("--config.mesh.data=-1", "--config.mesh.fsdp=1", "--config.mesh.tensor=1")
TOLERANCE = 1e-4  # of a loss or an evaluation, relative: sums in another order
PATIENCE = 3000  # seconds that a run may take

Places = list[tuple[int, int]]  # of each device of a mesh, in its order: its process, and which of that process's it is


def places_of(mesh: Mesh) -> Places:
    """Where the devices of a mesh are, in its order."""
    hosts: dict[int, list[int]] = {}
    for device in sorted(mesh.devices.flat, key=lambda device: device.id):
        hosts.setdefault(device.process_index, []).append(device.id)
    return [(device.process_index, hosts[device.process_index].index(device.id)) for device in mesh.devices.flat]


def laid_out_as(shape: tuple[int, ...], places: Places, devices: list[jax.Device]) -> Mesh:
    """The mesh of `shape` with `devices` at `places`: `places_of` it is `places` again."""
    hosts: dict[int, list[jax.Device]] = {}
    for device in sorted(devices, key=lambda device: device.id):
        hosts.setdefault(device.process_index, []).append(device)
    laid_out = np.array([hosts[process][index] for process, index in places]).reshape(shape)
    return Mesh(laid_out, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * len(sharding.MESH_AXES))


class Run:
    """Processes of one run, forked from one that has the libraries loaded and has used none.

    Args:
      arguments: flags of `rae_jax.main`.
      shape, places: of the mesh.
    """

    def __init__(self, workdir: Path, arguments: list[str], shape: tuple[int, ...], places: Places):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rae_jax.main"])
        count = 1 + max(process for process, _ in places)
        self.outputs = [workdir.with_name(f"{workdir.name}_{number}.txt") for number in range(count)]
        arguments = [*arguments, f"--workdir={workdir}"]
        if count > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            arguments += ["--distributed", f"--coordinator_address={address}", f"--num_processes={count}"]
        self.processes = []
        for number, output in enumerate(self.outputs):
            own = [*arguments, f"--process_id={number}"] if count > 1 else arguments
            process = context.Process(
                target=as_host, args=(own, shape, places, len(places) // count, output), daemon=True
            )
            process.start()
            self.processes.append(process)

    def ended(self, what: str, allowed: tuple[int, ...] = (0,)) -> list[int | None]:
        """Waits for the end of all processes, and gives their statuses.

        Raises:
          ValueError: one has ended with none of those allowed, or is still there after `PATIENCE` seconds; `what` is
            what the message calls the run.
        """
        deadline = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        wrong = [number for number, status in enumerate(statuses) if status not in allowed]
        if wrong:
            told = self.outputs[wrong[0]].read_text().strip().splitlines()[-12:]
            raise ValueError(
                f"{what}: processes ended with {statuses}, where {allowed} are right; what number {wrong[0]} said last "
                f"({self.outputs[wrong[0]]}):\n" + "\n".join(told)
            )
        return statuses


def as_host(arguments: list[str], shape: tuple[int, ...], places: Places, devices: int, output: Path) -> None:
    """The command line `rae_jax.main` on one host of the slice, which has so many devices."""
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    jax.config.update("jax_platforms", "cpu")
    # One compiles for all, as no machine has so many cores: by a name that does not depend on the process.
    jax.config.update("jax_share_binary_between_hosts", True)
    cache_key._hash_accelerator_config = lambda *_: None
    sharding.make_mesh = lambda sizes, among=None: laid_out_as(shape, places, jax.devices())
    sys.argv = ["rae_jax.main", *arguments]
    app.run(command.main, flags_parser=experiment.parse)


def numbers(workdir: Path) -> dict[str, float]:
    """Every loss of a run and every evaluation while it trained, by stage, step and name.

    Raises:
      ValueError: one was recorded twice.
    """
    found: dict[str, float] = {}
    for _, record in read_json_lines(workdir / "metrics.jsonl"):
        for name in record:
            if name == "loss" or name.startswith("evaluation/"):
                key = f"{record['stage']} {record['step']} {name}"
                if key in found:
                    raise ValueError(f"{workdir}/metrics.jsonl has {key} twice")
                found[key] = record[name]
    return found


def largest_deviation(expected: dict[str, float], found: dict[str, float]) -> tuple[float, str]:
    """The largest relative deviation of numbers from those expected, and of which.

    Raises:
      ValueError: there are other numbers, or one deviates by more than `TOLERANCE`.
    """
    if missing := sorted(expected.keys() ^ found.keys()):
        raise ValueError(f"only one run has recorded {missing[:5]}")
    deviations = {key: abs(found[key] - value) / abs(value) for key, value in expected.items()}
    for key, deviation in deviations.items():
        if not deviation <= TOLERANCE:  # or is none
            raise ValueError(f"{key}: {found[key]} instead of {expected[key]}")
    where = max(deviations, key=deviations.__getitem__)
    return deviations[where], where


def wait_for_step(workdir: Path, step: int, run: Run) -> None:
    """Waits until a stage of the run has recorded `step`, or the run has ended."""
    records, stage_step = workdir / "metrics.jsonl", f'"step": {step},'
    while any(process.is_alive() for process in run.processes):
        if records.exists() and stage_step in records.read_text():
            return
        time.sleep(0.05)


def rehearse(arguments: list[str], shape: tuple[int, ...], places: Places, directory: Path, preempt_at: int) -> dict:
    """Runs on one device and on the slice's stand-ins, and compares.

    Raises:
      ValueError: a process ended otherwise than it should, or a number differs.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    seconds = {}
    one, slice_ = directory / "one", directory / "slice"
    for name, workdir in (("one", one), ("slice", slice_)):
        began = time.monotonic()
        if name == "one":
            run = Run(workdir, [*arguments, *ONE_DEVICE], (1, 1, 1), [(0, 0)])
        else:
            run = Run(workdir, arguments, shape, places)
        if name == "slice" and preempt_at:
            wait_for_step(workdir, preempt_at, run)
            asked = time.monotonic()
            os.kill(run.processes[-1].pid, signal.SIGTERM)
            run.ended("slice, preempted", (75,))
            seconds["stopping"] = round(time.monotonic() - asked, 1)
            run = Run(workdir, arguments, shape, places)
        run.ended(name)
        seconds[name] = round(time.monotonic() - began, 1)
    expected = numbers(one)
    largest, where = largest_deviation(expected, numbers(slice_))
    outcome = {"numbers": len(expected), "largest_deviation": largest, "at": where, "seconds": seconds}
    if (one / "samples.npz").exists():
        ours, theirs = (read_samples(workdir / "samples.npz").images.astype(int) for workdir in (slice_, one))
        outcome["samples"], outcome["samples_differ_by"] = len(ours), int(np.abs(ours - theirs).max())
    results = [json.loads((workdir / "summary.json").read_text())["results"] for workdir in (one, slice_)]
    outcome["results"] = {name: [value, results[1][name]] for name, value in results[0].items()}
    return outcome


def main(arguments: list[str]) -> None:
    del arguments
    given = [a for a in sys.argv[1:] if a.lstrip("-").split("=")[0] not in OWN]
    config = experiment.config()
    try:
        mesh = mesh_over(config, TOPOLOGY.value)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # libtpu has taken it
        places = places_of(mesh)
        hosts = 1 + max(process for process, _ in places)
        print(
            f"{TOPOLOGY.value}: {hosts} hosts with {len(places) // hosts} devices each, "
            f"mesh {dict(mesh.shape)}; the first devices of the mesh are on the hosts "
            f"{[process for process, _ in places[:16]]}",
            flush=True,
        )
        workdir = experiment.workdir() if experiment.WORKDIR.value else Path("runs/rehearsal")
        outcome = rehearse(given, mesh.devices.shape, places, workdir, PREEMPT_AT.value)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(json.dumps({"topology": TOPOLOGY.value, "mesh": dict(mesh.shape), "hosts": hosts} | outcome))


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # of the processes; this one only asks libtpu
    if not any(a.split("=")[0] == "--config" for a in sys.argv):
        sys.argv[1:1] = FLAGSHIP
    app.run(main, flags_parser=experiment.parse)
