"""What docs/text_to_image.md says of its tables is what they hold."""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "docs" / "text_to_image.md").read_text()
SAID = " ".join(TEXT.split())


def tables(heading: str) -> list[dict[str, list[float]]]:
    """The tables below a heading: of each row, called by its first cell or that of the row above, all numbers."""
    part = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", part, flags=re.MULTILINE):
        rows, above = {}, ""
        for line in block.splitlines()[2:]:
            name, passes, *cells = (cell.strip() for cell in line.strip()[1:-1].split("|"))
            above = name or above
            rows[f"{above}, {passes}"] = [float(number) for cell in cells for number in re.findall(r"\d+\.\d+", cell)]
        found.append(rows)
    return found


def test_few_steps_are_read_as_their_tables_have_them():
    painted, edited = tables("In few steps")
    teacher, middle, first, second = (
        "the DiT, 50 steps, 100", "mid-training alone, 1", "and distillation, 1", "and distillation, 2",
    )  # fmt: skip
    share, diversity, distance = ({row: n[i] for row, n in painted.items()} for i in (0, 2, 3))
    unseen = {row: numbers[1] for row, numbers in painted.items()}
    assert "Mid-training alone paints what it is asked for as often as its teacher does in a hundred passes" in SAID
    assert all(abs(each[middle] - each[teacher]) < 0.01 for each in (share, unseen))
    assert "and the least diverse digits" in SAID and min(diversity, key=diversity.get) == middle
    assert "as close to real ones as the teacher's and more diverse, and paints more prompts wrongly" in SAID
    assert abs(distance[first] - distance[teacher]) < 0.05 and diversity[first] > diversity[teacher]
    assert all(each[first] < each[middle] for each in (share, unseen))
    one, two = (f"distillation at a rate of 2e-3, 1,200 steps, {passes}" for passes in (1, 2))
    assert "for twice the steps still fewer are painted in one step, but not in two" in SAID
    assert all(each[one] < each[first] and each[two] >= each[second] for each in (share, unseen))

    overall = {row: numbers[-1] for row, numbers in edited.items()}
    assert "mid-training alone does nearly what its teacher does; distillation is worse in one step" in SAID
    assert 0 < overall["the mixture, 49 steps, 147"] - overall[middle] < 0.03 and overall[first] < overall[middle]
    assert "no different in two" in SAID and abs(overall[second] - overall["mid-training alone, 2"]) < 0.005
    for followed, kept, _, both in edited.values():
        assert abs((followed * kept) ** 0.5 - both) < 6e-4
