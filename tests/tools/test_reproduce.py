"""The dispatcher of findings, and the runs that findings are made of."""

import pytest

from tools import reproduce
from tools.findings.runs import from_digits, run

DOCUMENT = "# Findings\n\n<!-- a: begin -->\nold\n<!-- a: end -->\n\n<!-- b: begin -->\nkept\n<!-- b: end -->\n"


def test_a_section_is_replaced_where_it_stands_and_the_others_are_kept():
    assert reproduce.with_section(DOCUMENT, "a", "new\n") == DOCUMENT.replace("old", "new")


def test_a_section_without_markers_goes_to_the_end_and_from_there_is_replaced():
    longer = reproduce.with_section(DOCUMENT, "c", "first")
    assert longer == DOCUMENT + "\n<!-- c: begin -->\nfirst\n<!-- c: end -->\n"
    assert reproduce.with_section(longer, "c", "second") == longer.replace("first", "second")


def test_a_marker_that_is_never_closed_is_an_error():
    with pytest.raises(ValueError, match=r"<!-- a: end -->"):
        reproduce.with_section("<!-- a: begin -->\nold\n", "a", "new")


def test_a_finding_without_a_trained_digits_run_says_how_to_make_one(tmp_path):
    with pytest.raises(
        ValueError, match=r"no trained 'flow': run `python -m rae_jax\.main --config=configs/digits\.py"
    ):
        from_digits(tmp_path, "flow")


@pytest.mark.slow
def test_a_run_that_diverges_is_kept_with_its_message_and_one_that_fails_otherwise_is_not(tmp_path):
    short = {"stages": "('encoder',)", "evaluation.judge": False, "evaluation.frechet": False}
    bounded = short | {"encoder.train.max_loss": 1e-9}
    for _ in range(2):  # the second time it is read
        stopped = run(tmp_path / "run", "configs/digits.py:tiny", bounded)
        assert "encoder: loss reached" in stopped.stopped and not stopped.results
    with pytest.raises(ValueError, match="'encodr'"):
        run(tmp_path / "other", "configs/digits.py:tiny", {"stages": "('encodr',)"})
