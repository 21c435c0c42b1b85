"""What is said of guidance follows from its numbers, and the table has a mean and a deviation of the sets."""

from tools.findings.guidance import Point, _readings

PLAIN = Point([0.10, 0.11, 0.12], [0.90, 0.91, 0.92], [2.0, 2.1, 2.2], [0.1] * 10)
SURER = Point([0.11, 0.12, 0.10], [0.98, 0.99, 1.00], [1.0, 1.1, 1.2], [0.1] * 10)
FARTHER = Point([0.50, 0.51, 0.52], [0.91, 0.90, 0.92], [2.1, 2.0, 2.2], [0.1] * 10)


def test_each_number_names_the_settings_that_change_it():
    lines = _readings(PLAIN, [("this", 1.5, SURER), ("that", 2.0, FARTHER), ("that", 3.0, FARTHER)])
    assert lines == [
        "- agreement is higher with: this at 1.5.",
        "- agreement is lower with: none.",
        "- distance is higher with: that at 2; that at 3.",
        "- distance is lower with: none.",
        "- diversity is higher with: none.",
        "- diversity is lower with: this at 1.5.",
    ]


def test_a_row_has_what_was_measured():
    assert SURER.row("this", 1.5) == "| this | 1.5 | 99.0 ± 1.0 % | 0.110 ± 0.010 | 1.10 ± 0.10 |"
