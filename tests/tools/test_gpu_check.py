"""PyTorch's step beside ours, and the script that measures both on a GPU, whose two benchmarks stand-ins replace."""

import json
import os
import subprocess
import sys

import jax
import runs

from rae_jax.models.dit_dh import DiTDH
from tools import torch_benchmark

TINY = {"width": 24, "depth": 1, "num_heads": 2, "head_width": 32, "head_depth": 1, "head_num_heads": 4}
MEASURED = {"devices": "1 x NVIDIA", "torch": "2.11", "step_seconds": 0.25, "fastest_step_seconds": 0.2}
MEASURED |= {"peak_bytes": 52.2e9, "compile_seconds": 90.4}
STAND_IN = f"""#!{sys.executable}
import json, pathlib, subprocess, sys
if sys.argv[1] == "-":
    sys.exit(subprocess.run([{sys.executable!r}, *sys.argv[1:]]).returncode)
with open("{{told}}", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if {{works}}:
    path = next(a.partition("=")[2] for a in sys.argv if a.startswith("--json="))
    pathlib.Path(path).write_text('{{measured}}')
sys.exit(not {{works}})
"""


def check(tmp_path, works: str):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text(STAND_IN.format(told=tmp_path / "told.jsonl", works=works, measured=json.dumps(MEASURED)))
    python.chmod(0o755)
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    done = subprocess.run(
        ["tools/gpu_check.sh", str(tmp_path / "out")], cwd=runs.ROOT, env=os.environ | {"PATH": path}, text=True,
        capture_output=True,
    )  # fmt: skip
    return done, [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]


def test_the_official_step_has_the_parameters_of_ours_and_trains(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch_benchmark, "SIZES", {"XL": TINY})
    monkeypatch.setattr(torch_benchmark, "SHAPE", torch_benchmark.SHAPE | {"grid_size": 4, "in_channels": 6})
    torch_benchmark.main(["--batch=2", "--dtype=bfloat16", "--steps=2", f"--json={tmp_path / 'out.json'}"])
    result = json.loads((tmp_path / "out.json").read_text())
    assert json.loads(capsys.readouterr().out) == result
    model = DiTDH(**torch_benchmark.SHAPE | torch_benchmark.FLAGS | TINY)
    z, t = jax.ShapeDtypeStruct((2, 16, 6), "float32"), jax.ShapeDtypeStruct((2,), "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), z, t, jax.ShapeDtypeStruct((2,), "int32"))
    assert result["params"] == sum(x.size for x in jax.tree.leaves(params)) - 256  # fixed frequencies
    assert 0 < result["fastest_step_seconds"] <= result["step_seconds"] and result["peak_bytes"] > 0


def test_the_script_measures_ours_and_theirs_by_commands_that_there_are(tmp_path):
    done, told = check(tmp_path, "True")
    assert done.returncode == 0, done.stderr
    assert [command[1] for command in told] == ["tools.benchmark"] * 2 + ["tools.torch_benchmark"] * 2
    assert "--compile" in told[3] and "--compile" not in told[2] and "--config.flow.model.scan=True" in told[1]
    assert "1 x NVIDIA torch 2.11" in done.stdout
    assert "| PyTorch, autocast, `torch.compile` | 0.250 s (0.200) | 52.2 GB | 90 s |" in done.stdout
    assert done.stdout.count("0.250 s (0.200)") == 4


def test_what_fails_is_named_and_the_rest_measured(tmp_path):
    done, _ = check(tmp_path, "'tools.benchmark' in sys.argv")
    assert done.returncode == 0 and done.stdout.count("0.250 s (0.200)") == 2
    assert "torch failed" in done.stderr and "torch_compile failed" in done.stderr


def test_without_a_number_the_script_fails(tmp_path):
    done, _ = check(tmp_path, "False")
    assert done.returncode == 1 and "nothing was measured" in done.stderr


def test_the_script_passes_shellcheck():
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run(
        ["shellcheck", "tools/gpu_check.sh"], cwd=runs.ROOT, text=True, capture_output=True,
        env=os.environ | {"PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
