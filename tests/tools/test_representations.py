"""Pictures of representations."""

import numpy as np
import pytest
import runs
from PIL import Image

from tools.representations import token_colours


def test_tokens_that_differ_have_colours_that_differ_and_the_first_component_is_the_widest():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, (5, 16))
    tokens = np.where(kinds[..., None], 3.0, -3.0) * rng.normal(size=7) + 0.01 * rng.normal(size=(5, 16, 7))
    colours = token_colours(tokens)
    assert colours.shape == (5, 4, 4, 3) and colours.dtype == np.uint8
    red = colours[..., 0].reshape(5, 16).astype(int)
    assert abs(red[kinds == 1].mean() - red[kinds == 0].mean()) > 200
    assert max(red[kinds == 1].std(), red[kinds == 0].std()) < 10


@pytest.mark.slow
def test_every_picture_is_drawn_of_a_finished_run(tmp_path):
    status, output = runs.run(tmp_path, "--config.stages=('encoder','decoder','stats','flow')")
    assert status == 0, output
    for kind in ("tsne", "probe", "latents", "trajectories"):
        options = "--config=configs/digits.py:tiny", f"--workdir={tmp_path}", f"--show={kind}", "--count=100"
        status, output = runs.run_module("tools.representations", *options)
        assert status == 0, output
        picture = np.asarray(Image.open(tmp_path / f"{kind}.png").convert("RGB"))
        assert picture.std() > 5
        assert ("linear probe: " in output) == (kind == "probe")
