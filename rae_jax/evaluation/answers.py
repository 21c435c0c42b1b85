"""Scores of written answers to questions about images, as the public question sets count them.

exact            the normalised answer is one of those accepted
multiple_choice  the letter of the right option (AI2D, and sets like it)
vqa              TextVQA and VQAv2: as many of the ten people as gave the answer, over three, at most one
mme              yes or no; the accuracy over questions plus that over images of which both are right, in percent
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(r"[^\w\s'-]")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(i) for i, word in enumerate(_NUMBERS)}


def normalised(answer: str) -> str:
    """An answer in lower case without articles, punctuation and needless space; small numbers as digits."""
    words = _ARTICLES.sub(" ", _PUNCTUATION.sub(" ", answer.lower())).split()
    return " ".join(_DIGITS.get(word, word) for word in words)


def exact(answer: str, accepted: Sequence[str]) -> float:
    """1 if the answer is one of those accepted, else 0."""
    return float(normalised(answer) in {normalised(a) for a in accepted})


def vqa(answer: str, people: Sequence[str]) -> float:
    """The share in [0, 1] of VQA: the mean over all leave-one-out sets of `min(1, matches / 3)`.

    Args:
      people: what each of the people answered; ten in the public sets.
    """
    matches = [normalised(answer) == normalised(each) for each in people]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def multiple_choice(answer: str, options: Sequence[str], right: int) -> float:
    """1 if the answer names the option number `right`, by its letter or by its words, else 0."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    given = answer.strip()
    if letter := re.match(rf"\(?([{letters}])(?:[).:,\s]|$)", given):
        return float(letters.index(letter[1]) == right)
    named = [i for i, option in enumerate(options) if normalised(option) == normalised(given)]
    return float(named == [right])


def mme(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """MME's score of each category, 0 to 200, and their sum as "total".

    Args:
      rows: a question each: `category`, `image`, `expected` ("yes" or "no") and `answer`.
    """
    right = defaultdict(lambda: defaultdict(list))  # of each category and image
    for row in rows:
        said = normalised(row["answer"]).split()[:1]
        right[row["category"]][row["image"]].append(said == [normalised(row["expected"])])
    scores = {}
    for category, images in right.items():
        questions = [r for each in images.values() for r in each]
        both = [all(each) for each in images.values()]
        scores[category] = 100 * (sum(questions) / len(questions) + sum(both) / len(both))
    return scores | {"total": sum(scores.values())}
