"""A slice of several hosts, on this machine: its order of devices, its losses, and how its processes end together."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import runs
from ml_collections import ConfigDict

from rae_jax.costs.compile_report import mesh_over
from tools import rehearse

LONG = (
    "--config.stages=('encoder',)",
    "--config.encoder.train.steps=1000000",
    "--config.encoder.train.log_every=1000",
    "--config.encoder.train.checkpoint_every=1000000",
)
SECONDS = 20.0  # on a machine with other work; a step and two seconds on one without


@pytest.mark.parametrize("axes", [{"fsdp": 1}, {"fsdp": 8}, {"fsdp": 16}, {"tensor": 2}])
@pytest.mark.parametrize("topology", ["v5p:2x2x4", "v5p:4x4x4", "v5e:4x4", "v6e:8x8"])
def test_the_stand_ins_of_a_slice_lie_in_the_mesh_in_the_slice_s_own_order(topology, axes):
    pytest.importorskip("libtpu")
    mesh = mesh_over(ConfigDict({"mesh": {"data": -1, "fsdp": 1, "tensor": 1} | axes}), topology)
    places, devices = rehearse.places_of(mesh), list(mesh.devices.flat)
    random.Random(0).shuffle(devices)
    again = rehearse.laid_out_as(mesh.devices.shape, places, devices)
    assert (again.devices == mesh.devices).all() and again.axis_names == mesh.axis_names
    hosts = [process for process, _ in places]
    assert {hosts.count(host) for host in hosts} == {4} and sorted(set(hosts)) == list(range(mesh.size // 4))


@pytest.mark.slow
def test_a_slice_of_two_hosts_preempted_once_has_the_losses_and_samples_of_one_device(tmp_path):
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "tools.rehearse", "--topology=v5p:2x2x2", "--preempt_at=2"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'rehearsal'}", "--config.mesh.fsdp=4"], cwd=runs.ROOT, text=True,
        capture_output=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["hosts"] == 2 and outcome["numbers"] == 7 and outcome["samples_differ_by"] <= 1


def trains(workdir):
    """Whether the step is compiled."""
    return (workdir / "metrics.jsonl").exists() and runs.metrics(workdir, "encoder", "compile_seconds")


class Pair:
    """Two processes of one run."""

    def __init__(self, workdir, *options, other=None):
        common = ("--distributed", f"--coordinator_address={runs.free_address()}", "--num_processes=2", *options)
        places = (workdir, other or workdir)
        self.processes = [runs.start(place, *common, f"--process_id={i}") for i, place in enumerate(places)]

    def wait_for(self, there):
        deadline = time.monotonic() + 300
        while not there():
            for process in self.processes:
                assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ended(self, within=SECONDS):
        """Statuses and outputs of both."""
        outputs = [process.communicate(timeout=within)[0] for process in self.processes]
        return [process.returncode for process in self.processes], outputs

    def close(self):
        for process in self.processes:
            process.kill()


@pytest.fixture
def pair():
    """Starts pairs of processes, and ends them."""
    started = []

    def start(*arguments, **keywords):
        started.append(Pair(*arguments, **keywords))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_one_process_that_trains_stops_all_with_status_75_at_one_step_far_from_the_next_report(
    number, pair, tmp_path
):
    two = pair(tmp_path / "run", *LONG)
    two.wait_for(lambda: trains(tmp_path / "run"))
    time.sleep(2)  # some of the 1000 steps between two reports
    two.processes[1].send_signal(number)
    statuses, outputs = two.ended()
    assert statuses == [75, 75], outputs
    saved = [int(path.name) for path in (tmp_path / "run/encoder/checkpoints").iterdir()]
    assert len(saved) == 1 and f"asked to stop; saving step {saved[0]}." in outputs[0]
    assert "Traceback" not in "".join(outputs)


@pytest.mark.slow
def test_processes_that_sample_leave_with_status_75_when_one_is_asked_and_go_on_from_the_samples_made(pair, tmp_path):
    sampling = (
        "--config.stages=()", "--config.flow.weights=random", "--config.encoder.weights=random",
        "--config.decoder.weights=random", "--config.stats.weights=identity", "--config.sampling.num_samples=100000",
        "--config.sampling.batch_size=20", "--mode=sample", "--config.sampling.flow_map_times=()",
    )  # fmt: skip
    two = pair(tmp_path / "run", *sampling)
    two.wait_for((tmp_path / "run" / "samples.partial.json").exists)
    two.processes[1].send_signal(signal.SIGTERM)
    statuses, outputs = two.ended()
    assert statuses == [75, 75], outputs
    assert "process 1 was asked to stop, and so are all. The same command goes on" in outputs[0]
    assert (tmp_path / "run" / "samples.partial.json").exists() and "Traceback" not in "".join(outputs)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_other_ends_soon_so_that_the_launcher_starts_both_again(victim, pair, tmp_path):
    two = pair(tmp_path / "run", *LONG)
    two.wait_for(lambda: trains(tmp_path / "run"))
    two.processes[victim].send_signal(signal.SIGKILL)
    statuses, outputs = two.ended(60.0)
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] in (75, -signal.SIGABRT), outputs


@pytest.mark.slow
def test_working_directories_that_are_each_host_s_own_are_refused_before_anything_is_made(pair, tmp_path):
    statuses, outputs = pair(tmp_path / "one", *LONG, other=tmp_path / "two").ended(120.0)
    assert statuses == [1, 1], outputs
    assert "is not the same for all processes: number 1 do not see what number 0 wrote there" in outputs[0]
    assert not (tmp_path / "two").exists() and "Traceback" not in "".join(outputs)
