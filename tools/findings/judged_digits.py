"""Samples of digits, judged alike whatever run they are of: by one classifier of pixels, and in one encoder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rae_jax.data.sources import load_split, open_source
from rae_jax.evaluation.class_diversity import class_diversity, small_images
from rae_jax.evaluation.judge import train_judge
from rae_jax.sampling.samples import read_samples
from tools.findings.common_encoder import CommonEncoder
from tools.findings.seeds import changed, shown, verdict

REAL_DIVERSITY = 2.63  # of the digits that are trained on


@dataclasses.dataclass(frozen=True)
class Judged:
    """Of samples, one number a seed.

    Attributes:
      agreement: the share that are the digit asked for.
      distance: Fréchet distance to held-out digits.
      diversity: the deviation of a pixel within a class, 8 x 8 pixels from 0 to 16.
    """

    agreement: np.ndarray
    distance: np.ndarray
    diversity: np.ndarray

    def cells(self) -> str:
        """Of a row of a table in Markdown."""
        shares, distances = shown(100 * self.agreement, ".1f", " %"), shown(self.distance)
        return f"{shares} | {distances} | {shown(self.diversity, '.2f')}"

    def beside(self, other: "Judged") -> str:
        """What may be said of these samples beside others."""
        return (
            f"agreement {verdict(self.agreement, other.agreement, 'higher')}, "
            f"distance {verdict(self.distance, other.distance, 'lower')}, "
            f"diversity {changed(self.diversity, other.diversity)}"
        )


class DigitJudge:
    """Judges files of samples; `weights` are those of the encoder of `configs/digits.py`."""

    def __init__(self, weights: str):
        (train, labels), (held_out, _) = (load_split(open_source("digits", split)) for split in ("train", "test"))
        self._judge, self._encoder = train_judge(train, labels), CommonEncoder(weights, held_out)

    def judged(self, files: Sequence[Path]) -> Judged:
        """The numbers of a `samples.npz` a seed."""
        rows = []
        for file in files:
            samples = read_samples(file)
            agreement = self._judge.agrees(samples.images, samples.labels).mean()
            diversity = class_diversity(small_images(samples.images), samples.labels)
            rows.append((agreement, self._encoder.distance(samples.images), diversity))
        return Judged(*np.array(rows, float).T)
