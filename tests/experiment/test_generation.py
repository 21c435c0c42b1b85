"""What a working directory says of the samples in it."""

import json
import types

import pytest

from configs import digits
from rae_jax.experiment.generation import Generation, made_otherwise, samples_made, settings


def test_samples_of_other_settings_are_told_from_those_that_the_config_asks_for(tmp_path):
    config = digits.get_config("tiny")
    for name, scale in (("samples", 1.0), ("samples_1step", 1.5)):
        made = {"seed": 3, "sampling": settings(config) | {"guidance_scale": scale}, "weights": {"flow": "of a file"}}
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
        (tmp_path / f"{name}.npz").touch()
    (tmp_path / "samples_2step.npz").touch()  # of a version that did not say
    found = samples_made(tmp_path)
    assert list(found) == ["samples", "samples_1step"] and found["samples_1step"]["sampling"]["guidance_scale"] == 1.5
    assert found["samples"].keys() == {"seed", "sampling"}
    (line,) = made_otherwise(tmp_path, config)
    assert "samples_1step.npz was made with sampling.guidance_scale=1.5, and not 1.0: --mode=sample" in line
    config.sampling.guidance_scale, config.sampling.batch_size = 1.5, 7
    (line,) = made_otherwise(tmp_path, config)
    assert "samples.npz was made with sampling.guidance_scale=1.0, and not 1.5" in line


@pytest.mark.parametrize("there", [{"mid_training", "flow_map"}, {"mid_training"}])
def test_samples_of_few_steps_are_of_the_flow_map_that_is_trained_last(there, tmp_path):
    weights = types.SimpleNamespace(available=lambda name: name in there, identity=lambda name: name)
    requests = Generation(digits.get_config("tiny"), weights, None, tmp_path, None).requests()
    assert requests.keys() == {"samples_1step", "samples_2step"}
    for request in requests.values():
        assert there & request["weights"].keys() == {"flow_map" if "flow_map" in there else "mid_training"}
