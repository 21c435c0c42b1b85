"""The table of compile reports: its rows are real, and say what the reports say."""

import importlib.util
import json

import pytest
from PIL import Image
from test_documents import check

from tools.performance_table import DOCUMENT, ROWS, SCALING, Row, cells, draw_scaling, main, report, table

RESULT = {
    "hbm_bytes_per_chip": 3 * 2**30, "hbm_limit_bytes": 95 * 2**30, "compiler_step_seconds": 0.05,
    "optimal_seconds": 0.06, "collective_seconds": 0.002, "seconds_at_peak": 0.031, "contradiction": None,
    "steps_per_second": 1 / 0.062, "mfu": 0.5, "compile_seconds": 61.4,
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_command_that_exists(name):
    check(["python", "-m", *ROWS[name].command])


def test_a_line_says_what_the_report_says():
    line = cells(ROWS["dit_dh_xl"], RESULT)
    assert line[2:] == ["3.0 of 95", "50.0 / 60.0", "2.0", "31.0", "16.13", "50.0 %", "61"]
    none = cells(ROWS["cmt"], RESULT | {"optimal_seconds": None, "steps_per_second": None, "contradiction": "too few"})
    assert none[3] == "50.0 / none" and none[6:8] == ["too few", ""]


def test_a_program_that_does_not_fit_says_so_and_the_rows_keep_their_order():
    lines = table({"cmt": {"failed": "RESOURCE_EXHAUSTED: 54 G of 31 G"}, "dit_dh_s": RESULT}).splitlines()
    assert lines[2].startswith("| DiT^DH-S |") and lines[3].startswith(
        "| CMT, 8 trajectories of 64 pairs, bfloat16 | v5p:2x2x2 | RESOURCE_EXHAUSTED: 54 G"
    )
    assert len({line.count("|") for line in lines}) == 1


def test_an_unknown_row_is_refused():
    with pytest.raises(SystemExit, match="no rows"):
        main(["--rows=dit_dh_xxl"])


def test_the_rows_of_the_scaling_plot_have_as_many_images_a_chip_and_make_a_picture(tmp_path):
    results = [RESULT | {"chips": chips} for chips in (4, 64, 256)]
    draw_scaling(results, tmp_path / "scaling.png")
    assert Image.open(tmp_path / "scaling.png").width > 300
    batches = {name: [word for word in ROWS[name].command if "batch_size" in word] for name in SCALING}
    assert [value[0].split("=")[1] if value else "1024" for value in batches.values()] == ["64", "1024", "4096"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_row_is_compiled_for_its_slice_and_fits(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")  # the compiler's estimate is that of the program people run
    report(Row("tiny", "digits.py:tiny", "v5p:2x2x1", ("--stage=flow",)), tmp_path / "report.json")
    result = json.loads((tmp_path / "report.json").read_text())
    assert "failed" not in result, result
    assert result["chips"] == 4 and 0 < result["hbm_bytes_per_chip"] < result["hbm_limit_bytes"]
    assert result["contradiction"] is None and 0 < result["mfu"] < 0.6


def test_what_is_said_of_precisions_is_what_the_table_holds():
    text = DOCUMENT.read_text()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    exact, rounded = (rows[name] for name in ("RAE stage 1, with discriminator, float32", "the same, bfloat16"))
    share, passes = float(exact[7].split()[0]), {6: 16.7, 3: 33.3}
    assert f"{passes[6]} and {passes[3]} % are all that there is" in text
    assert all(abs(100 / number - most) < 0.05 for number, most in passes.items())
    assert f"has {100 * share / passes[6]:.0f} % of the former" in text.replace("\n", " ")
    assert "three times the steps" in text and round(float(rounded[6]) / float(exact[6])) == 3
