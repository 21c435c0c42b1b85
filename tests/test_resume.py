"""A run killed without warning and started again gives what it would have given."""

import json
import time

import pytest
import runs


def wait_for_checkpoint(workdir, stage, step, process):
    for _ in range(6000):
        if process.poll() is not None:
            raise AssertionError(f"the run ended before step {step}:\n{process.communicate()[0]}")
        if (workdir / stage / "checkpoints" / str(step)).exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{stage} has no checkpoint of step {step}")


@pytest.mark.slow
def test_a_run_killed_twice_and_started_again_equals_one_that_was_never_killed(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    status, output = runs.run(whole, runs.WITHOUT_FLOW_MAP)
    assert status == 0, output

    for stage, step in (("encoder", 10), ("flow", 5)):
        process = runs.start(cut, runs.WITHOUT_FLOW_MAP)
        wait_for_checkpoint(cut, stage, step, process)
        process.kill()
        process.communicate()
    status, output = runs.run(cut, runs.WITHOUT_FLOW_MAP)
    assert status == 0, output
    assert "flow: continuing from step" in output

    for stage in ("encoder", "decoder", "flow"):
        for name in ("loss", "gradient_norm", "learning_rate"):
            assert runs.metrics(cut, stage, name) == runs.metrics(whole, stage, name)
    results = [json.loads((workdir / "summary.json").read_text())["results"] for workdir in (cut, whole)]
    assert results[0] == results[1]
    assert (cut / "samples.npz").read_bytes() == (whole / "samples.npz").read_bytes()
