"""The decoders that are compared make the same pixels; the pipeline's rate is counted in images."""

import numpy as np

from configs import digits
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
