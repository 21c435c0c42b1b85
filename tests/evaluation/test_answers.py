"""Scores of answers, against their definitions worked out by hand."""

import itertools

import pytest

from rae_jax.evaluation import answers


@pytest.mark.parametrize(
    "answer, accepted, expected",
    [
        ("The red Car.", ["red car"], 1),
        ("two", ["2"], 1),
        ("blue", ["red", "Blue!"], 1),
        ("bluish", ["blue"], 0),
        ("", ["no"], 0),
    ],
)
def test_exact(answer, accepted, expected):
    assert answers.exact(answer, accepted) == expected


@pytest.mark.parametrize("agreeing", range(11))
def test_vqa_is_the_mean_over_the_sets_of_nine(agreeing):
    people = ["cat"] * agreeing + ["dog"] * (10 - agreeing)
    sets = itertools.combinations(people, 9)
    expected = sum(min(1, nine.count("cat") / 3) for nine in sets) / 10
    assert answers.vqa("a cat", people) == pytest.approx(expected)


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("B", 1),
        ("(B)", 1),
        ("B. the moon", 1),
        ("b", 0),
        ("A", 0),
        ("the Moon", 1),
        ("Because", 0),
        ("sun", 0),
        ("D", 0),
    ],
)
def test_multiple_choice(answer, expected):
    assert answers.multiple_choice(answer, ["sun", "moon", "mars"], 1) == expected


def test_mme_adds_the_accuracy_of_questions_and_of_images():
    rows = [
        dict(category="color", image="1", expected="yes", answer="Yes."),
        dict(category="color", image="1", expected="no", answer="No, it is not"),
        dict(category="color", image="2", expected="yes", answer="yes"),
        dict(category="color", image="2", expected="no", answer="yes"),
        dict(category="OCR", image="1", expected="yes", answer="maybe"),
        dict(category="OCR", image="1", expected="no", answer="no"),
    ]
    scores = answers.mme(rows)
    assert scores == pytest.approx({"color": 75 + 50, "OCR": 50 + 0, "total": 175})
