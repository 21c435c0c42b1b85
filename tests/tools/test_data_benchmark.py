"""The decoders that are compared make the same pixels; the pipeline's rate is counted in images."""

import numpy as np
import pytest
from PIL import Image

from configs import digits, finetune
from rae_jax.experiment.configuration import resolved, stage_of
from tools.data_benchmark import decoders, measure_pipeline, photographs


def test_all_decoders_make_the_same_pixels():
    for data in photographs():
        images = [decode(data).astype(int) for decode in decoders().values()]
        for image in images:
            assert image.shape == (375, 500, 3)
            assert np.abs(image - images[0]).max() <= 1


def test_the_rate_of_a_pipeline_is_in_images_a_second_and_in_the_bytes_that_the_devices_are_given():
    config = digits.get_config("tiny")
    config.decoder.train.batch_size = 64
    found = measure_pipeline(config, "decoder", 0.2)
    assert found.images > 64
    assert round(found.bytes / found.images) == 32 * 32 * 3 + 4  # pixels and a label


def test_the_first_stage_is_measured_and_the_classes_are_counted_where_the_config_leaves_that_to_the_data(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (80, 70)).save(tmp_path / name / f"{i}.png")
    config = finetune.get_config("tiny")
    config.data.path, config.decoder_tuning.train.evaluate_every = str(tmp_path), 0
    config = resolved(config)
    assert config.flow.num_classes == 3
    stage = stage_of(config, "", otherwise=0)
    assert stage == "decoder_tuning" and measure_pipeline(config, stage, 0.1).images > 1
    with pytest.raises(ValueError, match=r"--stage=decoder_tunning: .*nearest: decoder_tuning"):
        stage_of(config, "decoder_tunning")
