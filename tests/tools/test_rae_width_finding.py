"""RAE's theorem as a finding: its bound, and that the section's words follow from its numbers."""

import itertools

import numpy as np
import pytest

from configs import overfit
from rae_jax.experiment.configuration import check
from tools.findings import rae_width
from tools.findings.rae_width import DEPTHS, GRID, HEAD, WIDTHS, bound, variant


def test_the_bound_is_the_least_error_of_a_map_of_that_rank():
    """On noise of 8 dimensions, by the singular values: what a projection onto the best 3 of them leaves over."""
    noise = np.random.default_rng(0).normal(size=(200_000, 8))
    left_over = np.sort(np.linalg.eigvalsh(np.cov(noise.T)))[: 8 - 3].sum() / 8
    assert bound(8, 3) == pytest.approx(left_over, rel=0.01)
    assert bound(8, 8) == bound(8, 16) == 0


def losses(above: float, wide: float) -> dict[str, np.ndarray]:
    names = [variant(width=width) for width in WIDTHS] + [variant(depth=depth) for depth in DEPTHS]
    names += [variant(tokens, width) for tokens, width in itertools.product(GRID, GRID)]
    found = {name: rae_width._bound_of(name) + above + np.array([0.0, 0.01, 0.02]) for name in names}
    return found | {variant(head=HEAD): wide + np.zeros(3)}


def test_what_the_section_says_follows_from_the_numbers():
    shown = rae_width.section(losses(above=0.1, wide=0.2))
    assert "| 48 | 0.250 | 0.360 ± 0.010 |" in shown and "- No narrow network comes below its bound" in shown
    assert "The wide head brings 0.610 to 0.200: below the bound of its backbone." in shown
    contradicted = rae_width.section(losses(above=-0.1, wide=0.7))
    assert "- A narrow network comes below its bound" in contradicted
    assert "to 0.700: not below the bound of its backbone." in contradicted


@pytest.mark.parametrize("name", ["768-12", variant(), variant(head=HEAD), variant(128, 32)])
def test_the_configs_are_whole(name):
    config = overfit.get_config(name)
    config.data.path = "somewhere"
    if "laptop" not in name:
        config.encoder.weights = config.decoder.weights = "random"
    check(config, file="configs/overfit.py", num_devices=1)
    network = config.flow.model
    assert network.width == int(name.split("-")[-2 if "laptop" not in name else 2])


@pytest.mark.parametrize(
    "name", ["", "768", "768-0", "100-12", "laptop-64-32", "laptop-64-32-4-128-2", "laptop-60-32-4"]
)
def test_what_is_no_variant_is_refused(name):
    with pytest.raises(ValueError, match="is neither a width, a multiple of 64, and a depth"):
        overfit.get_config(name)
