"""A small grammar about scenes of digits: captions, questions with answers, and instructions with what they make.

Every sentence is drawn with the given random numbers, from several ways to say the same.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rae_jax.data.scenes import ALL_PAIRS, CELLS, COLOURS, SEEN_PAIRS, Item, Scene, described, draw, scene, seen

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = {(0, 0): "top left", (0, 1): "top right", (1, 0): "bottom left", (1, 1): "bottom right"}
# GenEval's categories under its names, and how many digits the prompts of each ask for.
CATEGORIES = {
    "single_object": (1,),
    "two_object": (2,),
    "counting": (2, 3, 4),
    "colors": (1,),
    "position": (2, 3),
    "color_attr": (2,),
}
PARTIAL = 0.25  # of the captions to learn from, those that leave something open
DESCRIBED = 0.25  # of the conversations to learn from, those that ask for all of a scene
BRIEF = 0.5  # of the edits to learn from, those that name a digit without its colour where that is enough
OPENINGS = ("", "", "a picture of ", "draw ")

Naming = Callable[[Item, Scene], str]  # how an instruction names an item of a scene


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What an image is asked for by, and what should be in it.

    Attributes:
      text: all of the scene in words, so that any judge can look at any of it.
      category: one of `CATEGORIES`, which says what counts.
      items: the scene.
    """

    text: str
    category: str
    items: Scene


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change of a scene.

    Attributes:
      kind: one of `EDITS`.
      instruction: in words.
      target: the scene afterwards; what is kept keeps its handwriting.
    """

    kind: str
    instruction: str
    target: Scene


def _choice(random: np.random.RandomState, ways: Sequence[Any]) -> Any:
    return ways[random.randint(len(ways))]


def _a(words: str) -> str:
    return f"{'an' if words.startswith('eight') else 'a'} {words}"


def _plural(digit: int) -> str:
    return "sixes" if digit == 6 else "zeros" if digit == 0 else f"{NUMBERS[digit]}s"


def _listed(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _noun(item: Item) -> str:
    return f"{item.colour} {NUMBERS[item.digit]}"


def _placed(item: Item) -> str:
    return f"{_a(_noun(item))} at the {PLACES[item.cell]}"


def _shuffled(items: Scene, random: np.random.RandomState) -> list[Item]:
    return [items[i] for i in random.permutation(len(items))]


def caption(items: Scene, random: np.random.RandomState) -> str:
    """A sentence that tells all of a scene: none other (but for the handwriting) fits it."""
    order = _shuffled(items, random)
    if len(items) > 1 and len({item.digit for item in items}) == 1:
        each = _listed([f"{item.colour} at the {PLACES[item.cell]}" for item in order])
        return f"{_choice(random, OPENINGS)}{NUMBERS[len(items)]} {_plural(items[0].digit)}, {each}"
    return _choice(random, OPENINGS) + _listed([_placed(item) for item in order])


def description(items: Scene) -> tuple[str, str]:
    """A question whose answer is all of a scene, cell by cell: much to learn from one image."""
    return "what is there?", _listed([_placed(item) for item in items])


def partial_caption(items: Scene, random: np.random.RandomState) -> str:
    """A sentence that is true of a scene, and leaves open where its digits are, or their colours, or both."""
    order = _shuffled(items, random)
    ways = [
        _listed([_a(NUMBERS[item.digit]) for item in order]),
        _listed([_a(_noun(item)) for item in order]),
        _listed([f"{_a(NUMBERS[item.digit])} at the {PLACES[item.cell]}" for item in order]),
    ]
    if len(items) == 2:
        first, second = (_a(_noun(item)) for item in items)
        if items[0].row == items[1].row:
            ways += [f"{first} to the left of {second}", f"{second} to the right of {first}"]
        elif items[0].column == items[1].column:
            ways += [f"{first} above {second}", f"{second} below {first}"]
    if len(items) > 1 and len({item.digit for item in items}) == 1:
        ways = [f"{NUMBERS[len(items)]} {_plural(items[0].digit)}"]
    return _choice(random, OPENINGS) + _choice(random, ways)


def caption_to_learn(items: Scene, random: np.random.RandomState, chance: float) -> str:
    """A caption, or where `chance`, in [0, 1), is below `PARTIAL` a partial one."""
    return (partial_caption if chance < PARTIAL else caption)(items, random)


def prompt(category: str, random: np.random.RandomState, *, of_seen: bool = True) -> Prompt:
    """A prompt of a category at random.

    Args:
      of_seen: of combinations of digit and colour that training scenes have; or with one, at least, that none has.
    """
    while True:
        count = int(_choice(random, CATEGORIES[category]))
        one_digit = category == "counting"
        items = draw(random, count, SEEN_PAIRS if of_seen else ALL_PAIRS, one_digit=one_digit)
        different = one_digit or len({item.digit for item in items}) == len(items)
        if different and seen(items) == of_seen:
            return Prompt(caption(items, random), category, items)


def question(items: Scene, random: np.random.RandomState) -> tuple[str, str]:
    """A question about a scene, and its answer.

    An answer says again what was asked about before what is seen, so that what is looked for stands right before it: of
    answers of one word, a small model found two thirds, for it did not look where the question said.
    """
    item, cell, digits = _choice(random, items), _choice(random, CELLS), [item.digit for item in items]
    there = {other.cell: _a(_noun(other)) for other in items}
    asked = item.pair if random.rand() < 0.5 else _choice(random, SEEN_PAIRS)
    there_is = any(other.pair == asked for other in items)
    wanted = _a(f"{asked[1]} {NUMBERS[asked[0]]}")
    number, alike, place, here = NUMBERS[item.digit], _plural(item.digit), PLACES[item.cell], PLACES[cell]
    coloured = NUMBERS[sum(other.colour == item.colour for other in items)]
    ways = [
        ("how many digits are there?", f"the number of digits is {NUMBERS[len(items)]}"),
        (f"what is at the {here}?", f"at the {here} is {there.get(cell, 'nothing')}"),
        (f"which digit is at the {place}?", f"at the {place} is {_a(number)}"),
        (f"what color is the digit at the {place}?", f"the digit at the {place} is {item.colour}"),
        (f"is there {wanted}?", f"{wanted} is {'there' if there_is else 'not there'}"),
        (f"how many {item.colour} digits are there?", f"the number of {item.colour} digits is {coloured}"),
        (f"how many {alike} are there?", f"the number of {alike} is {NUMBERS[digits.count(item.digit)]}"),
    ]
    if digits.count(item.digit) == 1:
        ways += [
            (f"what color is the {number}?", f"the {number} is {item.colour}"),
            (f"where is the {number}?", f"the {number} is at the {place}"),
        ]
    return _choice(random, ways)


def questions_to_learn(items: Scene, random: np.random.RandomState, chance: float, most: int) -> list[tuple[str, str]]:
    """Different questions and their answers, of one conversation; `chance` in [0, 1).

    One for all of the scene where `chance` is below `DESCRIBED`; else `most`, or fewer where some would be the same.
    """
    if chance < DESCRIBED:
        return [description(items)]
    return list(dict.fromkeys(question(items, random) for _ in range(most)))


def edit(items: Scene, random: np.random.RandomState, *, brief: bool = False) -> Edit:
    """A change of a scene at random that can be seen: one of `EDITS`; a third are two that follow each other.

    Args:
      brief: an instruction does not tell the colour of a digit that is there once, so that its shape has to be known.
    """
    the = _the_digit if brief else _the
    if random.randint(3):
        return _single(items, random, the)
    while True:
        first = _single(items, random, the)
        second = _single(first.target, random, the)
        if described(second.target) != described(items):
            joint = _choice(random, (", then ", " and then "))
            return Edit("chain", first.instruction + joint + second.instruction, second.target)


def _single(items: Scene, random: np.random.RandomState, the: Naming) -> Edit:
    impossible = {"add", "move"} if len(items) == len(CELLS) else set()
    if len(items) == 1:
        impossible |= {"remove", "swap"}
    if len({item.pair for item in items}) == 1:  # nobody would see that twins were swapped
        impossible |= {"swap"}
    possible = [kind for kind in _SINGLE if kind not in impossible]
    kind = _choice(random, possible)
    instruction, target = _SINGLE[kind](items, random, the)
    return Edit(kind, instruction, scene(target))


def _the(item: Item, items: Scene) -> str:
    """An item of a scene by its digit and colour, and by its place where others are like it."""
    alike = sum(other.pair == item.pair for other in items) > 1
    return f"the {_noun(item)}" + f" at the {PLACES[item.cell]}" * alike


def _the_digit(item: Item, items: Scene) -> str:
    """An item by its digit alone, where that is enough."""
    alone = sum(other.digit == item.digit for other in items) == 1
    return f"the {NUMBERS[item.digit]}" if alone else _the(item, items)


def _others(items: Scene, *but: Item) -> list[Item]:
    return [item for item in items if item not in but]


def _empty_cell(items: Scene, random: np.random.RandomState) -> tuple[int, int]:
    return _choice(random, [cell for cell in CELLS if cell not in {item.cell for item in items}])


def _recolour(items: Scene, random: np.random.RandomState, the: Naming) -> tuple[str, list[Item]]:
    item = _choice(random, items)
    colours = [c for c in COLOURS if c != item.colour and (item.digit, c) in SEEN_PAIRS]
    new = dataclasses.replace(item, colour=_choice(random, colours))
    what = the(item, items)
    return _choice(random, (f"make {what} {new.colour}", f"paint {what} {new.colour}")), [*_others(items, item), new]


def _replace(items: Scene, random: np.random.RandomState, the: Naming) -> tuple[str, list[Item]]:
    item = _choice(random, items)
    new = _new(item.cell, random, but=item.pair)
    what = the(item, items)
    ways = (f"replace {what} with {_a(_noun(new))}", f"turn {what} into {_a(_noun(new))}")
    return _choice(random, ways), [*_others(items, item), new]


def _remove(items: Scene, random: np.random.RandomState, the: Naming) -> tuple[str, list[Item]]:
    item = _choice(random, items)
    what = the(item, items)
    return _choice(random, (f"remove {what}", f"take away {what}")), _others(items, item)


def _add(items: Scene, random: np.random.RandomState, the: Naming) -> tuple[str, list[Item]]:
    new = _new(_empty_cell(items, random), random)
    what = _placed(new)
    return _choice(random, (f"add {what}", f"put {what}")), [*items, new]


def _move(items: Scene, random: np.random.RandomState, the: Naming) -> tuple[str, list[Item]]:
    item = _choice(random, items)
    row, column = _empty_cell(items, random)
    where = PLACES[row, column]
    moved = dataclasses.replace(item, row=row, column=column)
    return f"move {the(item, items)} to the {where}", [*_others(items, item), moved]


def _swap(items: Scene, random: np.random.RandomState, the: Naming) -> tuple[str, list[Item]]:
    first = _choice(random, items)
    second = _choice(random, [item for item in items if item.pair != first.pair])
    moved = [
        dataclasses.replace(first, row=second.row, column=second.column),
        dataclasses.replace(second, row=first.row, column=first.column),
    ]
    return f"swap {the(first, items)} and {the(second, items)}", [*_others(items, first, second), *moved]


def _new(cell: tuple[int, int], random: np.random.RandomState, but: tuple[int, str] | None = None) -> Item:
    pair = _choice(random, [pair for pair in SEEN_PAIRS if pair != but])
    return Item(*pair, *cell, glyph=int(random.randint(2**16)))


_SINGLE: dict[str, Callable[[Scene, np.random.RandomState, Naming], tuple[str, list[Item]]]] = {
    "recolour": _recolour,
    "replace": _replace,
    "remove": _remove,
    "add": _add,
    "move": _move,
    "swap": _swap,
}
EDITS = (*_SINGLE, "chain")
