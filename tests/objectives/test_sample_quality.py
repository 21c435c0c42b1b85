"""The evaluation of generators in training, run by the pipeline as a user runs it."""

import pytest
import runs


@pytest.mark.slow
def test_a_flow_records_the_frechet_distance_of_its_averaged_weights_and_keeps_the_best(tmp_path):
    options = [f"--config.flow.train.{field}" for field in ("evaluate_every=8", "best_metric=frechet",
               "keep_checkpoints=1", "checkpoint_every=100", "evaluation_images=300")]  # fmt: skip
    status, output = runs.run(tmp_path, runs.WITHOUT_FLOW_MAP, *options)
    assert status == 0, output
    distances = runs.metrics(tmp_path, "flow", "evaluation/frechet")
    assert list(distances) == [8, 16, 20] and min(distances.values()) > 0
    assert len(set(distances.values())) == 3
    best = min(distances, key=distances.get)
    kept = {int(path.name) for path in (tmp_path / "flow" / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {best, 20}
    assert "held-out images at step 8: frechet" in output
