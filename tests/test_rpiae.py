"""RPiAE's pipeline, run as a user runs it."""

import json

import numpy as np
import pytest
import runs

CONFIG = "configs/digits_rpiae.py:tiny"
TRAINED = ("encoder", "pivot", "bridge", "specialisation", "flow")
SHORT = [
    *(f"--config.{stage}.train.steps=2" for stage in TRAINED),
    *(f"--config.{stage}.train.checkpoint_every=2" for stage in TRAINED),
]


@pytest.mark.slow
def test_the_stages_hand_their_weights_on_and_end_in_samples_and_reconstructions(tmp_path):
    workdir = tmp_path / "run"
    status, output = runs.run(workdir, *SHORT, config=CONFIG)
    assert status == 0, output
    for weights in (
        "encoder/weights", "pivot/weights/encoder", "pivot/weights/decoder", "bridge/weights/bridge_encoder",
        "bridge/weights/bridge_decoder", "specialisation/weights", "feature_stats/weights", "stats/weights",
    ):  # fmt: skip
        assert (workdir / weights / "weights.safetensors").is_file(), weights
    assert not (workdir / "pivot" / "weights" / "weights.safetensors").exists()
    # The pivot is in no checkpoint.
    metadata = (workdir / "pivot" / "checkpoints" / "2" / "state" / "_METADATA").read_text()
    parts = {name.split("'")[1] for name in json.loads(metadata)["tree_metadata"]}
    assert parts == {"step", "params", "ema_params", "opt_state"}
    with np.load(workdir / "samples.npz") as samples:
        assert samples["arr_0"].shape == (20, 32, 32, 3) and samples["arr_0"].dtype == np.uint8
    with np.load(workdir / "reconstructions.npz") as pairs:
        assert pairs["originals"].shape == pairs["reconstructions"].shape == (359, 32, 32, 3)
        assert pairs["originals"].dtype == pairs["reconstructions"].dtype == np.uint8

    results = json.loads((workdir / "summary.json").read_text())["results"]
    for probe in ("linear_probe_accuracy", "original_linear_probe_accuracy", "attached_head_accuracy"):
        assert 0.1 < results[probe] <= 1, probe
    # Two steps change the encoder a little.
    assert abs(results["attached_head_accuracy"] - results["original_linear_probe_accuracy"]) < 0.2

    status, output = runs.run(workdir, *SHORT, config=CONFIG)
    assert status == 0 and output.count("already finished") == 7, output
