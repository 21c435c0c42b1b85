"""A TFDS builder of a few digits as encoded PNG files: builders must live in a module that can be imported."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

DIGITS = load_digits()


def digit(index: int) -> tuple[np.ndarray, int]:
    """Digit `index` as uint8 `[8, 8, 3]`, and its label."""
    image = (DIGITS.images[index] * 15).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2), int(DIGITS.target[index])


class TinyDigits(tfds.core.GeneratorBasedBuilder):
    """Thirty digits to train on, ten for validation, and two whose labels are withheld."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=[f"digit {i}" for i in range(10)]),
                "position": np.int32,
            }
        )
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        del dl_manager
        ranges = {"train": range(30), "validation": range(30, 40), "test": range(40, 42)}
        return {split: self._generate_examples(split, positions) for split, positions in ranges.items()}

    def _generate_examples(self, split, positions):
        for i in positions:
            image, label = digit(i)
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": -1 if split == "test" else label, "position": i}
