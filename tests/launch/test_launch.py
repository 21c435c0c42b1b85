"""The launchers: the one for this machine is run, the commands of the others are read."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs
import yaml

RUN = ["--", "--config=configs/digits.py:tiny", "--workdir=/disk/a run", "--config.stages=('flow',)"]
SLICE = ["--name=rae", "--zone=us-east5-a"]
LAUNCHERS = sorted((runs.ROOT / "launch").glob("*.sh"))
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def launch(script: str, *arguments: str) -> tuple[int, str]:
    process = subprocess.run(
        [runs.ROOT / "launch" / f"{script}.sh", *arguments], text=True, capture_output=True, timeout=60,
        env=os.environ | {"PATH": PATH},
    )  # fmt: skip
    return process.returncode, process.stdout + process.stderr


def commands(script: str, *arguments: str) -> list[list[str]]:
    status, output = launch(script, *arguments)
    assert status == 0, output
    return [shlex.split(line) for line in output.splitlines()]


def test_every_launcher_passes_shellcheck():
    check = subprocess.run(
        ["shellcheck", "--external-sources", *LAUNCHERS], cwd=runs.ROOT, text=True, capture_output=True,
        env=os.environ | {"PATH": PATH},
    )  # fmt: skip
    assert check.returncode == 0, check.stdout
    assert len(LAUNCHERS) == 7


@pytest.mark.parametrize("script", [path.stem for path in LAUNCHERS if path.stem != "common"])
def test_help_of_every_launcher_explains_its_flags(script):
    status, output = launch(script, "--help")
    assert status == 0 and "--dry_run" in output and "#" not in output


def test_a_tpu_run_is_created_copied_installed_and_started_on_every_host():
    create, pack, copy, unpack, install, start = commands(
        "tpu", "up", *SLICE, "--type=v5p-128", "--spot=1", "--dry_run", *RUN
    )
    assert create == ["gcloud", "compute", "tpus", "tpu-vm", "create", "rae", "--zone=us-east5-a",
                      "--accelerator-type=v5p-128", "--version=v2-alpha-tpuv5", "--spot"]  # fmt: skip
    assert pack[0] == "tar" and copy[3:5] == ["tpu-vm", "scp"] and copy[6:] == [
        "rae:rae_jax.tar.gz", "--zone=us-east5-a", "--worker=all"
    ]  # fmt: skip
    for command in (unpack, install, start):
        assert command[3:8] == ["tpu-vm", "ssh", "rae", "--zone=us-east5-a", "--worker=all"]
    assert "requirements.txt" in install[8]
    # What the host's shell makes of it.
    host = start[8].removeprefix("--command=")
    words = shlex.split(host[: host.index(" > run.log")])
    assert words == ["cd", "rae_jax", "&&", "nohup", "launch/again.sh", RUN[2], "--", ".venv/bin/python", "-m",
                     "rae_jax.main", "--distributed", *RUN[1:]]  # fmt: skip


def test_a_preempted_tpu_slice_is_replaced_and_the_run_goes_on():
    found = commands("tpu", "resume", *SLICE, "--type=v6e-16", "--dry_run", *RUN)
    assert [command[4] for command in found if command[3:4] == ["tpu-vm"]] == [
        "describe", "delete", "create", "scp", "ssh", "ssh", "ssh"
    ]  # fmt: skip


def test_a_queued_resource_waits_in_the_queue_under_the_name_of_its_slice():
    [create] = commands(
        "queued_resources", "create", *SLICE, "--type=v5p-128", "--version=v2-alpha-tpuv5", "--valid_for=6h",
        "--dry_run",
    )  # fmt: skip
    assert create == ["gcloud", "compute", "tpus", "queued-resources", "create", "rae", "--node-id=rae",
                      "--zone=us-east5-a", "--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5",
                      "--valid-until-duration=6h"]  # fmt: skip


def test_a_slurm_job_asks_for_its_nodes_and_is_queued_again_when_it_was_stopped():
    arguments = ["--name=rae", "--nodes=4", "--gpus=8", "--time=24:00:00", "--partition=a100"]
    status, job = launch("slurm", *arguments, "--dry_run", *RUN)
    assert status == 0, job
    options = re.findall(r"^#SBATCH --(.*)$", job, re.MULTILINE)
    assert {"nodes=4", "ntasks-per-node=1", "gpus-per-node=8", "time=24:00:00", "partition=a100", "requeue",
            "signal=TERM@120"} <= set(options)  # fmt: skip
    [srun] = [line for line in job.splitlines() if line.startswith("srun")]
    words = shlex.split(srun.split("||")[0])
    assert words[words.index("rae_jax.main") :] == ["rae_jax.main", "--distributed", *RUN[1:]]
    # The shell runs it; srun ends as asked, scontrol says what it was asked.
    for status, restarts, queued in ((75, 0, True), (137, 99, True), (137, 100, False), (1, 0, False)):
        stand_ins = f"srun() {{ return {status}; }}\nscontrol() {{ echo scontrol $*; }}\nSLURM_JOB_ID=7\n"
        stand_ins += f"SLURM_RESTART_COUNT={restarts}\n"
        ended = subprocess.run(["bash", "-c", stand_ins + job], text=True, capture_output=True)
        assert ended.returncode == status and ended.stdout == queued * "scontrol requeue 7\n", ended


# What stands in for a run: each start takes the next word, saves a checkpoint if it has a "+", and ends by the rest.
FAKE_RUN = """
cd "$0"; set -- $(cat ends); word=$1; shift; echo "$@" > ends; echo started >> starts
case $word in *+*) mkdir -p flow/checkpoints/$(wc -l < starts) ;; esac
case ${word#+} in KILL) kill -KILL $$ ;; ABRT) kill -ABRT $$ ;; *) exit ${word#+} ;; esac
"""
ENDS = {
    "preemptions of all kinds, then the end": ("75 +KILL ABRT 0", 0, 4, "started again in 0 s"),
    "an error": ("75 1 0", 1, 2, "ended with status 1, an error; it has said which; not started again"),
    "the same again and again": ("KILL KILL KILL 0", 137, 3, "3 times in a row with nothing new saved"),
    "progress in between": ("KILL KILL +KILL KILL KILL 0", 0, 6, "was killed (signal 9)"),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_run_is_started_again_as_long_as_its_end_looks_like_a_preemption_and_it_gets_on(case, tmp_path):
    ends, status, starts, said = ENDS[case]
    (tmp_path / "ends").write_text(ends)
    flags = [f"--workdir={tmp_path}", "--attempts=3", "--pause=0", "--", "bash", "-c", FAKE_RUN, str(tmp_path)]
    found, output = launch("again", *flags)
    assert found == status and said in output, output
    assert (tmp_path / "starts").read_text() == starts * "started\n"


def test_a_run_that_is_asked_to_stop_is_not_started_again(tmp_path):
    command = [runs.ROOT / "launch" / "again.sh", f"--workdir={tmp_path}", "--pause=0", "--", "bash", "-c"]
    waiting = f"trap 'exit 75' TERM; echo >> {tmp_path}/started; while :; do sleep 0.05; done"
    with subprocess.Popen([*command, waiting], text=True, stderr=subprocess.PIPE) as process:
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        process.terminate()
        assert process.wait(20) == 75 and "not started again" in process.stderr.read()
    assert (tmp_path / "started").read_text() == "\n"


def test_a_jobset_has_a_pod_for_every_host_of_the_slice():
    status, manifest = launch(
        "gke", "--name=rae", "--image=gcr.io/p/rae:1", "--accelerator=tpu-v5p-slice", "--topology=4x4x8",
        "--claim=disk", "--dry_run", *RUN,
    )  # fmt: skip
    assert status == 0, manifest
    spec = yaml.safe_load(manifest)
    assert spec["kind"] == "JobSet" and spec["metadata"]["name"] == "rae"
    job = spec["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4 * 4 * 8 // 4
    pod = job["template"]["spec"]
    assert pod["containers"][0]["args"] == RUN[1:]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x8"


BAD = {
    "an unknown flag": ("slurm", ["--nodse=4"], "there is no flag --nodse"),
    "no name": ("tpu", ["create", "--zone=us-east5-a"], "--name=... is missing"),
    "a name that is no name": ("tpu", ["create", "--name=a;b", "--zone=us-east5-a"], "--name='a;b' must be"),
    "a zone that is none": ("tpu", ["logs", "--name=rae", "--zone=europe"], "--zone=europe is no zone"),
    "an unknown action": ("tpu", ["strat", *SLICE, "--dry_run"], "there is no action 'strat'"),
    "a type that is none": ("tpu", ["create", *SLICE, "--type=v5p", "--dry_run"], "--type=v5p is no accelerator type"),
    "no experiment": ("local", ["--processes=2", "--dry_run", "--", "--workdir=x"], "no --config=FILE"),
    "no working directory": ("local", ["--processes=2", "--dry_run", "--", "--config=x"], "no --workdir=DIR"),
    "no number": ("local", ["--processes=two", "--dry_run", *RUN], "--processes=two is not a whole number"),
    "chips that do not divide": (
        "gke",
        ["--name=r", "--image=i", "--accelerator=a", "--topology=2x3", "--claim=c", "--dry_run", *RUN],
        "has 6 chips, which hosts of --chips=4 do not divide",
    ),
    "a time that is none": (
        "slurm",
        ["--name=r", "--nodes=1", "--gpus=1", "--time=1h", "--dry_run", *RUN],
        "--time=1h",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_refused_with_the_flag_that_made_it(case):
    script, arguments, message = BAD[case]
    status, output = launch(script, *arguments)
    assert status == 2 and message in output, output


@pytest.mark.slow
def test_two_processes_of_this_machine_stop_together_when_asked_and_continue_to_the_end(tmp_path):
    options = [
        "--processes=2", "--devices=2", "--", "--config=configs/digits.py:tiny", f"--workdir={tmp_path / 'run'}",
        "--config.stages=('encoder',)", "--config.encoder.train.steps=600",
        *(f"--config.evaluation.{name}=False" for name in ("judge", "linear_probe", "reconstruction", "frechet")),
    ]  # fmt: skip
    command = [runs.ROOT / "launch" / "local.sh", *options]
    output = (tmp_path / "output.txt").open("w+")
    first = subprocess.Popen(command, env=os.environ | {"PATH": PATH}, stdout=output, stderr=subprocess.STDOUT)
    while not (tmp_path / "run" / "encoder" / "checkpoints" / "5").exists():
        assert first.poll() is None, (output.seek(0), output.read())[1]
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    status = first.wait(120)
    assert status == 75, (output.seek(0), output.read())[1]
    newest = max(int(path.name) for path in (tmp_path / "run/encoder/checkpoints").glob("[0-9]*"))
    again = subprocess.run(
        [*command, "--config.encoder.train.checkpoint_every=1000"], env=os.environ | {"PATH": PATH}, text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0 and f"continuing from step {newest}" in again.stdout, again.stdout + again.stderr
