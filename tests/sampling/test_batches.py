"""Which classes are sampled."""

import numpy as np
import pytest

from rae_jax.sampling.batches import choose_labels


def test_equal_labels_are_in_order_and_as_even_as_can_be():
    assert choose_labels("equal", 7, 3, 0).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert np.bincount(choose_labels("equal", 50_000, 1000, 0)).tolist() == [50] * 1000


def test_a_random_label_is_fixed_by_seed_and_index_alone():
    few, many = choose_labels("random", 40, 10, 5), choose_labels("random", 4000, 10, 5)
    np.testing.assert_array_equal(few, many[:40])
    assert (choose_labels("random", 40, 10, 6) != few).any()
    counts = np.bincount(many, minlength=10)
    assert counts.sum() == 4000 and np.abs(counts - 400).max() < 100  # five standard deviations


def test_unconditional_labels_are_all_the_null_label():
    assert choose_labels("unconditional", 3, 10, 0).tolist() == [10] * 3


def test_another_choice_is_refused_by_name():
    with pytest.raises(ValueError, match=r"sampling\.labels='even' is not one of"):
        choose_labels("even", 3, 10, 0)
