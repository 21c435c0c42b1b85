"""The gallery: what several runs have made, on one page that holds everything."""

import json

import numpy as np
import pytest
from pages import Page

from rae_jax.sampling.samples import save_png
from tools import gallery


@pytest.fixture
def runs(tmp_path):
    """One run that is done, and one that trains its second stage."""
    for name, stages in (("done <1>", ("flow",)), ("busy", ("decoder", "flow"))):
        run = tmp_path / name
        for stage in stages:
            (run / stage).mkdir(parents=True)
            save_png(run / stage / "step_9.png", np.zeros((4, 4, 3), np.uint8))
            save_png(run / stage / "step_10.png", np.full((4, 4, 3), 9, np.uint8))
        (run / "config.json").write_text(json.dumps({"stages": [*stages, "flow_map"]}))
        (run / stages[0] / "finished.json").write_text(json.dumps({"steps": 10, "seconds": 100.0}))
    done = tmp_path / "done <1>"
    save_png(done / "samples.png", np.zeros((8, 8, 3), np.uint8))
    (done / "summary.json").write_text(json.dumps({"results": {"psnr": 31.25}}))
    return done, tmp_path / "busy"


def test_the_page_has_every_run_with_its_numbers_and_its_newest_pictures(runs, tmp_path, capsys):
    gallery.main([*map(str, runs), f"--output={tmp_path / 'gallery.html'}"])
    assert "2 runs" in capsys.readouterr().out
    page = Page((tmp_path / "gallery.html").read_text())
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == ["samples", "step 10", "step 10", "step 10"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert "done <1>" in page.text and "31.25" in page.text and "trained for 1 min 40 s" in page.text
    assert page.text.index("done <1>") < page.text.index("busy")
    opened = ["open" in attributes for tag, attributes in page.tags if tag == "details"]
    assert opened == [False, True]  # where there is nothing else to see


@pytest.mark.parametrize(("broken", "message"), [("config.json", "not the working directory"), ("pictures", "no pic")])
def test_what_is_no_run_or_has_nothing_to_show_is_named_and_no_page_is_written(runs, tmp_path, broken, message):
    run, page = runs[1], tmp_path / "gallery.html"
    for path in run.rglob("*.png") if broken == "pictures" else [run / broken]:
        path.unlink()
    with pytest.raises(SystemExit, match=f"^error: .*busy.* {message}"):
        gallery.main([*map(str, runs), f"--output={page}"])
    assert not page.exists()
