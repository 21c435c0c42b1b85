"""Samples of digits judged alike: what the judge finds of real digits."""

import types

import pytest

from rae_jax.data.sources import load_split, open_source
from rae_jax.sampling.samples import write_samples
from tools.findings import judged_digits
from tools.findings.judged_digits import REAL_DIVERSITY, DigitJudge


def test_real_digits_agree_with_their_labels_and_are_as_diverse_as_is_said_of_them(monkeypatch, tmp_path):
    seen = []
    encoder = types.SimpleNamespace(distance=lambda images: seen.append(images.shape) or 0.25)
    monkeypatch.setattr(judged_digits, "CommonEncoder", lambda weights, held_out: encoder)
    images, labels = load_split(open_source("digits", "train"))
    paths = [tmp_path / "real.npz", tmp_path / "others.npz"]
    write_samples(paths[0], images, labels)
    write_samples(paths[1], images, (labels + 1) % 10)
    found = DigitJudge("none").judged(paths)
    assert found.agreement[0] > 0.97 and found.agreement[1] < 0.01
    assert found.diversity[0] == pytest.approx(REAL_DIVERSITY, abs=0.005)
    assert found.distance.tolist() == [0.25, 0.25] and seen == [images.shape] * 2
    assert "distance no different" in found.beside(found)
