"""What docs/findings.md says of its tables is what they hold: a table made anew that no longer does fails here."""

import re
from pathlib import Path

import pytest

from configs import digits_rpiae, digits_text

TEXT = (Path(__file__).parents[1] / "docs" / "findings.md").read_text()


def section(name: str) -> str:
    """What the finding's command has written."""
    return TEXT.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0]


def reading(name: str) -> str:
    """What is said of it below, on one line."""
    return " ".join(TEXT.split(f"<!-- {name}: end -->")[1].split("<!-- ")[0].split())


def cell(text: str, row: str, column: int, table: int = 0) -> str:
    """Of the row that begins with `row`, the cell of a column, counted from 0; of several such rows, one."""
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith(f"| {row} |")]
    return rows[table][column].strip()


def number(text: str, row: str, column: int, *, table: int = 0, part: int = 0) -> float:
    """The number there; of several in a cell, one."""
    return float(re.findall(r"-?\d+\.?\d*", cell(text, row, column, table))[part])


def said(name: str, *texts: str) -> None:
    """Each text, a pattern of words around numbers that were looked up, stands in the reading."""
    for text in texts:
        assert text in reading(name), f"docs/findings.md no longer says {text!r} of {name}"


def test_rae_width():
    rows = section("rae_width")
    loss = {width: number(rows, str(width), 2) for width in (16, 48, 96)}
    narrow = number(rows, "32", 2)
    deep = {depth: number(rows, str(depth), 2) for depth in (2, 8)} | {16: number(rows, "16", 2, table=1)}
    bound = number(rows, "32", 1)
    head = float(re.search(r"\(DiT\^DH\): (\S+)", rows)[1])
    summary = TEXT.split("<!--")[0]
    assert (
        f"loss {narrow:.3f} at half the width, where {bound:.3f} is the bound; {deep[16]:.3f} at four times the"
        in summary
    )
    assert f"{head:.3f} with the head, {narrow:.3f} without | shown" in summary
    assert "- No narrow network comes below its bound" in rows and head < 0.1 < bound < deep[16] < deep[2]
    assert loss[16] > narrow > loss[48] > loss[96] and loss[96] < 0.1
    said("rae_width", "and 0.08 to 0.09 more, at any depth from 2 to 16")
    assert all(round(value - bound, 2) in (0.08, 0.09) for value in (narrow, *deep.values()))
    grid = [line for line in rows.splitlines() if line.count("(") == 3]
    table = [[float(cell.split("±")[0]) for cell in line.split("|")[2:5]] for line in grid]
    own, wider = [table[i][i] for i in range(3)], [table[i][j] for i in range(3) for j in range(i + 1, 3)]
    said("rae_width", "leaves {:.2f}, {:.2f} and {:.2f} at 32, 64 and 128 channels".format(*own))
    said("rae_width", f"half again that width or more at most {max(*wider, loss[96]):.2f}")
    of_64 = [row[1] for row in table]  # of the tokens of 32, 64 and 128 channels
    assert of_64[0] < of_64[1] < 0.2 and of_64[2] > 0.5
    said("rae_width", "The same width of 64 fits tokens of 32 and of 64 channels, and not those of 128")


def test_raev2():
    rows, base = section("raev2"), "DiT^DH, as in the config"
    alone = ("means of three blocks", "x-prediction", "Muon", "in-context conditions",
             "in-context conditions, early output", "the same, guided by that")  # fmt: skip
    agreement = {row: number(rows, row, 2) for row in (base, *alone, "all of it", "all of it, guided")}
    pace = {row: number(rows, row, 1) for row in agreement}
    least, most = (f(agreement[row] for row in alone) for f in (min, max))
    assert max(agreement, key=agreement.get) == base and "distance better" not in rows
    assert f"{least} to {most} % label agreement with one of them, {agreement[base]} % without | not" in TEXT
    said("raev2", f"{agreement[base]} % is the highest agreement, and no distance is better")
    said("raev2", f"half as many steps ({pace['Muon']:.0f} a second, {pace[base]:.0f} with AdamW)", "after 45 seconds")
    said("raev2", f"far from done ({agreement['Muon']} %)", "cost a fifth of the steps")
    assert pace["in-context conditions"] / pace[base] == pytest.approx(0.8, abs=0.03)
    assert pace["means of three blocks"] == pace["x-prediction"] == pace[base] and "After 45 seconds:" in rows
    one = [number(rows, f"{name} | 1 step", 2) for name in ("RAEv2's generator", "DiT^DH")]
    assert "is no different (within two standard errors) in agreement" in rows
    said("raev2", f"as good as those of DiT^DH ({one[0]} and {one[1]} %)")


def test_mf_rae():
    rows, same = section("mf_rae"), "no different (within two standard errors)"
    far, near = (number(rows, f"bfloat16, dt = {dt}", 2) for dt in ("0.0001", "0.005"))
    assert f"- bfloat16, dt = 0.0001: distance {far:.3f}" in rows and f"against {near:.3f} ± 0.070, worse;" in rows
    said("mf_rae", f"twice as far from real digits ({far:.3f} against {near:.3f};")
    in_float32 = re.search(r"- float32, dt = 0.0001: distance [^;]*", rows)[0]
    assert far / near == pytest.approx(2, abs=0.1) and in_float32.endswith(same)
    errors = [number(rows, "dt = 0.0001", i) for i in (1, 2, 3)]
    said("mf_rae", f"is then off by {errors[2]:.0f} times itself", f"In float32 the error is {errors[0]} ")
    twice = [number(rows, f"bfloat16, dt = {dt}", 5) for dt in ("0.0001", "0.005")]
    said("mf_rae", "in two steps {:.3f} against {:.3f})".format(*twice))
    at_3, harmless = number(rows, "dt = 0.001", 3), number(rows, "bfloat16, dt = 0.001", 2)
    said("mf_rae", f"An error of {at_3}, that of 1e-3 in bfloat16, changes nothing that can be seen ({harmless:.3f})")
    assert re.search(r"- bfloat16, dt = 0.001: distance [^;]*", rows)[0].endswith(same)
    said("mf_rae", f"so TF32's of {errors[1]} may not either")
    median, usual = (number(rows, start, 7, part=1) for start in ("the teacher's weights", "mid-training"))
    start, mfd = (number(rows, row, 2) for row in ("the teacher's weights", "1 (MFD), 0.75"))
    assert number(rows, "mid-training", 2) == mfd and start < mfd
    highest = float(re.search(r"highest norm of any of these runs is ([\d.]+);", rows)[1])
    said("mf_rae", f"(distance {start:.3f} against {mfd:.3f})")
    first = [number(rows, row, 7) for row in ("the teacher's weights", "mid-training")]
    said("mf_rae", "larger at first ({} against {})".format(*first), f"alike in the median ({median} against {usual})")
    said("mf_rae", f"the highest of these nine runs is {highest}")
    said("mf_rae", f"teach nothing ({number(rows, 'random weights', 1)} %; chance is 10)")
    assert rows.count("| 0 of 3 |") == 3  # no start has a run above 1000
    mft = number(rows, "0 (MFT), 0.75", 2)
    said("mf_rae", f"closer to real digits in one step ({mfd:.3f} against {mft:.3f})")
    diverse = [number(rows, row, 3) for row in ("1 (MFD), 0.75", "0 (MFT), 0.75")]
    said("mf_rae", "more diverse ({} against {})".format(*diverse))
    for share, steps in (("0.75", "one step"), ("0.25", "one step"), ("0.25", "two steps")):
        line = re.search(rf"- MFD beside MFT, share {share}, {steps}: (.*)\.", rows)[1]
        assert line.count(same) == 2
    right = [number(rows, row, 4) for row in ("1 (MFD), 0.75", "0 (MFT), 0.75")]
    said("mf_rae", "in two steps it is less often right ({} against {} %)".format(*right))
    labels, later = re.search(r"beside true ones, one step: (.*)\n- In two steps: (.*)", rows).groups()
    assert labels.count(same) == 2 and ", worse;" in later
    for column, what in ((5, "further from real ones ({:.3f} against {:.3f})"), (6, "less diverse ({} against {})")):
        said("mf_rae", what.format(*(number(rows, row, column) for row in ("evenly spaced (released)", "true"))))
    assert rows.count("1 of 3 diverged") == 8 and "float32, `jax.jvp` | 96.0 ± 0.4 % (1 of 3 diverged)" in rows
    said("mf_rae", f"the distance is {cell(rows, 'mid-training', 2)} over three seeds")
    alone = [number(rows, "mid-training alone | 1", i) for i in (2, 3, 4)]
    others = re.findall(r"^\| .*?\| (\d+\.\d) ± ", rows, re.M)
    assert alone[0] == max(map(float, others)) and alone[1] / mfd == pytest.approx(1.9, abs=0.05)
    said("mf_rae", f"the highest of all ({alone[0]} % in one step)", f"what is distilled ({alone[1]:.3f})")
    said("mf_rae", f"less diverse than those of any distillation ({alone[2]})")
    distilled = rows.split("### The time derivative in")[1].split("### The times of")[0]
    assert alone[2] < min(map(float, re.findall(r"^\| .*? % .*?\| .*?\| (\d\.\d\d) ", distilled, re.M)))


def test_rae_stage1():
    rows = section("rae_stage1")
    clean, noisy = ([number(rows, "L1", i, table=t) for t in (0, 1)] for i in (2, 4))
    said("rae_stage1", f"{noisy[1] - noisy[0]:.2f} dB there and {clean[1] - clean[0]:.2f} dB here")
    plain, perceptual = number(rows, "L1", 3), number(rows, "L1 + LPIPS", 3)
    assert perceptual > plain
    said("rae_stage1", f"({perceptual:.3f} against {plain:.3f})")


def test_rpiae():
    rows, same = section("rpiae"), "no different (within two standard errors)"
    frozen, pivot, free = "frozen", "unfrozen, pivot", "unfrozen, no pivot"
    psnr, probe, head, agreement = ({run: number(rows, run, i) for run in (frozen, pivot, free)} if i != 3 else
                                    {run: number(rows, run, 3) for run in (pivot, free, "all at once")}
                                    for i in (1, 2, 3, 4))  # fmt: skip
    said("rpiae", f"is right about {head[pivot]} % of the digits", f"and about {head[free]} % on the one tuned without")
    assert (
        f"- Unfrozen, no pivot beside unfrozen, pivot: reconstruction better, probe {same}, attached head worse" in rows
    )
    said("rpiae", f"reads {probe[free]} % without a pivot, {probe[frozen]} % of a frozen encoder")
    assert f"- Unfrozen, no pivot beside frozen: reconstruction better, probe {same}" in rows
    said(
        "rpiae", f"by {psnr[pivot] - psnr[frozen]:.1f} dB with the pivot ({psnr[pivot]:.2f} against {psnr[frozen]:.2f})"
    )
    said("rpiae", f"and by {psnr[free] - psnr[frozen]:.1f} dB without it ({psnr[free]:.2f})")
    assert "- Unfrozen, pivot beside frozen: reconstruction better" in rows
    heavy, middle, light = (number(rows, f"weight {weight}", 1) for weight in ("1", "0.5", "0.25"))
    assert heavy < middle < light < psnr[free]
    said("rpiae", f"{heavy:.2f} dB at a weight of 1, {light:.2f} at 0.25, whose attached head is no worse")
    assert re.search(rf"- Weight 1 beside weight 0.25: reconstruction worse, .*attached head {re.escape(same)}", rows)
    said("rpiae", f"{min(agreement.values())} to {max(agreement.values())} % of the digits of (a)")
    assert digits_rpiae.get_config().flow.train.steps == 4700 and "flow 1,600;" in rows
    first = rows.split("(b) ")[0]
    assert first.count(f"agreement {same}, distance {same}.") == 3
    two, three = ([number(rows, run, i) for i in (1, 5)] for run in ("I, II", "I, II, III"))
    said("rpiae", f"brings {three[0] - two[0]:.1f} dB ({three[0]:.2f} against {two[0]:.2f})")
    said(
        "rpiae", f"a smaller distance ({three[1]:.3f} against {two[1]:.3f})", f"channels of stage I ({psnr[pivot]:.2f})"
    )
    assert "- 16 channels beside unfrozen, pivot: reconstruction better" in rows
    assert f"- 16 channels beside I, II: reconstruction better, agreement {same}, distance better." in rows
    joint = number(rows, "all at once", 1)
    said("rpiae", f"({joint:.2f} against {three[0]:.2f} dB)", f"is right about {head['all at once']} %")
    said("rpiae", f"its three seeds deviate by {number(rows, 'all at once', 4, part=1)} points")
    assert (
        f"- All at once beside 16 channels: reconstruction better, probe {same}, agreement {same}, distance {same}."
        in rows
    )
    budgets = [int(x.replace(",", "")) for x in re.findall(r"(?:pivot|bridge|specialisation|at once) ([\d,]+\d)", rows)]
    assert sum(budgets[:3]) == budgets[3]  # as many steps
    said("rpiae", f"({number(rows, '64 channels', 1):.2f} dB with 64 channels) and generates no differently")
    wide = rows.split("(e) ")[1]
    assert wide.count(f"reconstruction better, agreement {same}, distance {same}.") == 2
    assert rows.split("(c) ")[1].split("(d) ")[0].count(same) == 9


def test_rac():
    rows = section("rac")
    decoded = [number(rows, "800", i) for i in range(1, 6)]
    assert decoded[1] > decoded[0] and decoded[1:] == sorted(decoded[1:], reverse=True)
    said("rac", f"two steps are {decoded[1] - decoded[0]:.1f} dB better than one")
    said("rac", "{}, {}, {} and {} dB for 2, 4, 8 and 16".format(*(f"{psnr:.2f}" for psnr in decoded[1:])))
    assert all(
        max(values) - min(values) < 0.5
        for values in ([number(rows, steps, i) for i in range(1, 6)] for steps in ("50", "100", "200", "400"))
    )
    coder, teacher = number(rows, "coder, 4 steps", 2), number(rows, "teacher", 2)
    assert coder > teacher
    said("rac", f"its digits are {coder} from real ones and the teacher's {teacher}")
    own = re.search(r"reconstructs the held-out digits at ([\d.]+) dB", rows).group(1)
    said("rac", f"the teacher reconstructs {own} dB, the coder {decoded[1]:.2f}")
    every, alone = "all terms, K = 4", "neither way back (only decoding)"
    last = number(rows, "error of the latents over their variance", 3)
    said(
        "rac",
        f"no encoder ({number(rows, alone, 4)} of",
        f"it is to {number(rows, every, 4)}, after 800 steps to {last}",
    )
    four = {run: number(rows, run, 2) for run in (every, alone, "K = 1", "no path loss")}
    assert max(four, key=four.get) == alone
    said("rac", f"{four[alone]:.2f} dB in four steps against {four[every]:.2f} with all terms")
    said(
        "rac",
        f"K = 4 is {four[every] - four['K = 1']:.1f} dB better",
        f"({four[every]:.2f} against {four['K = 1']:.2f})",
    )
    assert four["no path loss"] == pytest.approx(four[every], abs=0.05)
    said("rac", f"({four[every]:.2f} dB in four steps with and without)")


def test_guidance():
    rows, inside = section("guidance"), "{}, 0.2 <= t <= 0.8 | {}"
    plain = [number(rows, "none | 1", i) for i in (2, 3, 4)]
    auto = [number(rows, inside.format("AutoGuidance", "1.5"), i) for i in (2, 3, 4)]
    free = {scale: number(rows, inside.format("classifier-free", scale), 4) for scale in ("1.5", "3")}
    said("guidance", f"makes {auto[0]} % right in place of {plain[0]} %", f"({auto[1]:.3f} against {plain[1]:.3f})")
    said("guidance", f"a little less diversity ({auto[2]:.2f} against {plain[2]:.2f})")
    said("guidance", f"leaves less of it ({free['1.5']:.2f})")
    assert free["1.5"] < auto[2] < plain[2]
    whole = number(rows, "classifier-free | 3", 4)
    said("guidance", f"leaves {whole:.2f} at all times, and {free['3']:.2f} in the interval")
    farther = re.search(r"distance is higher with: (.*)", rows)[1]
    assert [f"0.8 at {scale}" in farther for scale in ("1.5", "2", "3")] == [False, False, True]
    assert "AutoGuidance at 1.5" in farther
    for name in ("classifier-free", "AutoGuidance"):
        distances = [number(rows, f"{name} | {scale}", 3) for scale in ("1.5", "2", "3")]
        assert [plain[1], *distances] == sorted([plain[1], *distances])
    assert "- agreement is higher with: every one." in rows and "- distance is lower with: none." in rows
    assert "AutoGuidance, 0.2 <= t <= 0.8 at 1.5" in re.search(r"diversity is lower with: (.*)", rows)[1]


def test_precision():
    seeds, precisions = re.search(r"and ([\d.]+) at the last; .* and ([\d.]*\d)\. Every", section("precision")).groups()
    said("precision", "about twenty times closer")
    assert float(seeds) / float(precisions) == pytest.approx(20, abs=3)


def test_rae_generation():
    rows, same = section("rae_generation"), "no different (within two standard errors)"
    base, plain, deep = "DiT^DH, 96 x 3 and 96 x 1", "DiT, 96 x 4", "DiT^DH, 96 x 2 and 96 x 2"
    agreement = {name: number(rows, name, 2) for name in (base, plain, deep)}
    said("rae_generation", f"is right about {agreement[plain]} % of the digits, DiT^DH about {agreement[base]} %")
    assert f"- {plain}, beside {base}: agreement better, distance better" in rows
    said(
        "rae_generation",
        "with a tenth more operations",
        f"two of the four blocks in the head it is {agreement[deep]} %",
    )
    assert number(rows, base, 1) / number(rows, plain, 1) == pytest.approx(1.1, abs=0.02)
    assert f"- {deep}, beside {base}: agreement worse" in rows
    narrow, wide = "DiT, 48 x 10", "DiT^DH, 48 x 4 and 96 x 1"
    each = {
        name: [number(rows.replace(f"| {c} | {least} | {name} |", f"| {c} {name} |"), f"{c} {name}", 1)
               for c, least in ((32, at_32), (64, at_64), (96, at_96))]
        for name, at_32, at_64, at_96 in ((narrow, "0.00", "0.25", "0.50"), (wide, "—", "—", "—"))
    }  # fmt: skip
    text = "{}, {} and {} % against {}, {} and {} %".format(*each[narrow], *each[wide])
    said("rae_generation", text, "to leave a quarter and half of the noise over")
    assert rows.count(f"- {wide}, beside {narrow} (") == rows.count("channels): agreement worse") == 3
    whole = rows.split("\n(e) ")[1]
    after_all = {name: number(whole, name, 1) for name in (plain, base)}
    said(
        "rae_generation", f"the whole 4,700 steps it is {after_all[plain]} against {after_all[base]} %", "same distance"
    )
    assert f"- {plain}, beside {base}: agreement worse, distance {same}" in whole
    said("rae_generation", "a shift of 2 makes no difference any more")
    assert f"shift 2, beside {base}: agreement {same}, distance {same}, diversity {same}." in whole
    assert "for 1,600 steps of the config's 4,700, in (e) for all of them;" in rows
    shifts = {shift: number(rows.split("(c) ")[1], shift, 1) for shift in ("0.25", "0.5", "1", "2", "4")}
    said("rae_generation", f"which rises from {shifts['0.25']} to {shifts['4']} %", "differs at a quarter alone")
    of_shifts = rows.split("(c) ")[1].split("(d) ")[0]
    assert of_shifts.count(f"distance {same}") == 3 and of_shifts.count("distance worse") == 1
    assert list(shifts.values()) == sorted(shifts.values()) and "its base of 4,096 gives 0.25" in rows
    assert "- Shift 4, beside none: agreement better" in rows and "- Shift 0.25, beside none: agreement worse" in rows
    decoders = rows.split("\n(d) ")[1].split("\n(e) ")[0]
    said(
        "rae_generation", f"({number(decoders, '0', 1):.2f} dB without, {number(decoders, '1', 1):.2f} with a tau of 1)"
    )
    assert decoders.count(f"distance {same}") == 3
    summary = TEXT.split("<!-- mf_rae: begin -->")[0]
    claim = "label agreement in equal steps: {} against {} % after the config's, {} against {} % after a third of them"
    assert claim.format(after_all[base], after_all[plain], agreement[base], agreement[plain]) in summary
    assert f"{shifts['4']} % label agreement with a shift of 4, {shifts['1']} % without, after a third" in summary
    assert f"distance {cell(decoders, '0', 3)} without, {cell(decoders, '0.5', 3)} with | not shown" in summary


def test_text():
    rows, same = section("text"), "no different (within two standard errors)"
    names = ("as in the config", "in a KL-VAE's latents", "without guidance", "without the time shift")
    seen, unseen = ({name: number(rows, name, column) for name in names} for column in (2, 3))
    answers = {name: number(rows, name, 4) for name in (*names, "questions alone")}
    base, kl, unguided, unshifted = names
    said("text", "a seventh of the config's 5,300 steps")
    assert digits_text.get_config().text_to_image.train.steps == 5300
    assert 5300 / number(rows, base, 1) == pytest.approx(7, abs=0.5)
    said("text", f"shown for combinations that training shows, {seen[base]} against {seen[kl]} % of the prompts")
    assert unseen[base] == unseen[kl] and f"- In a KL-VAE's latents: seen prompts worse, others {same}." in rows
    said("text", f"of the others both paint {unseen[kl]} %", f"answers {answers['questions alone']} % of them")
    said("text", f"one that paints {answers[base]} %", f"({seen[unguided]} and {seen[unshifted]} % without)")
    for name in ("Without guidance", "Without the time shift"):
        assert f"- {name}: seen prompts worse, others {same}." in rows
    assert rows.strip().endswith("beside one that does not: better.")
    summary = TEXT.split("<!-- mf_rae: begin -->")[0]
    assert f"{seen[base]} against {seen[kl]} % of the prompts painted | shown" in summary
    assert f"{answers[base]} % of the questions answered with, {answers['questions alone']} % without" in summary


def test_the_summary_repeats_the_sections():
    summary = TEXT.split("<!-- mf_rae: begin -->")[0]
    mf_rae, rpiae, rac = section("mf_rae"), section("rpiae"), section("rac")
    precision = re.search(r"precisions ([\d.]+) and ([\d.]*\d)", section("precision")).group(2)
    seeds = re.search(r"over the steps and ([\d.]+) at", section("precision")).group(1)
    decoded = [number(rac, "800", i) for i in (1, 2, 5)]
    starts = [number(mf_rae, start, 7, part=1) for start in ("the teacher's weights", "mid-training")]
    rounded = [number(mf_rae, f"bfloat16, dt = {dt}", 2) for dt in ("0.0001", "0.005")]
    targets = [cell(mf_rae, f"{eta}, 0.75", 2) for eta in ("1 (MFD)", "0 (MFT)")]
    heads = [number(rpiae, run, 3) for run in ("unfrozen, pivot", "unfrozen, no pivot")]
    for text in (
        "median {} without, {} with".format(*starts),
        "distance {:.3f} against {:.3f} in bfloat16".format(*rounded),
        "distance {} against {} | not shown".format(*targets),
        "attached head {} % with, {} % without".format(*heads),
        f"{number(rpiae, 'I, II, III', 1)} against {number(rpiae, 'all at once', 1)} dB in as many steps",
        "{:.2f} dB in 1, {:.2f} in 2, {:.2f} in 16".format(*decoded),
        f"distance {number(rac, 'coder, 4 steps', 2)} against {number(rac, 'teacher', 2)}",
        f"losses {precision} apart, seeds {seeds}",
    ):
        assert text in summary, text
