"""What is said of numbers of several seeds."""

import math

import pytest
from scipy.stats import ttest_ind

from tools.findings.seeds import shown, verdict


def test_mean_and_deviation_are_shown_and_runs_that_diverged_are_counted():
    assert shown([0.25, 1.25, 2.25]) == "1.250 ± 1.000"
    assert shown([90.0, 92.0], ".1f", " %") == "91.0 ± 1.4 %"
    assert shown([0.5]) == "0.500"
    assert shown([1.0, 3.0, math.nan], ".1f") == "2.0 ± 1.4 (1 of 3 diverged)"
    assert shown([math.nan, math.inf]) == "diverged"


@pytest.mark.parametrize("difference", [-3, -2.1, -1.9, -0.1, 0.1, 1.9, 2.1, 3])
def test_means_differ_where_students_t_is_above_two(difference):
    """SciPy's t, of deviations that are not equal, says how many standard errors the means are apart."""
    others = [1.0, 2.0, 3.0]
    spread = [-0.3, 0.0, 0.3]
    error = math.sqrt((1.0 + 0.3**2) / 3)
    values = [2 + difference * error + x for x in spread]
    assert ttest_ind(values, others, equal_var=False).statistic == pytest.approx(difference)
    expected = "no different (within two standard errors)" if abs(difference) < 2 else "better"
    assert verdict(values, others, "lower" if difference < 0 else "higher") == expected
    assert verdict(values, others, "higher" if difference < 0 else "lower") == expected.replace("better", "worse")


def test_equal_runs_are_no_different_and_divergence_is_worse_than_any_number():
    assert verdict([1.0, 1.0], [1.0, 1.0], "lower").startswith("no different")
    assert verdict([1.0, math.nan], [9.0, 9.0], "lower") == "worse (1 of 2 runs diverged, against 0 of 2)"
    assert verdict([9.0, 9.0], [math.nan, 1.0], "lower") == "better (0 of 2 runs diverged, against 1 of 2)"
    assert verdict([math.nan] * 2, [math.inf] * 2, "lower").startswith("not compared")
    with pytest.raises(ValueError, match="one seed has no deviation"):
        verdict([1.0], [2.0, 3.0], "lower")
