import json
import os

import numpy as np
import pytest
from PIL import Image

from rae_jax.evaluation.pictures import curves, grouped_grid, image_grid, reconstruction_grid
from rae_jax.sampling.samples import save_png

RNG = np.random.default_rng(0)
COLOURS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0], [0, 200, 200]], np.uint8)
IMAGES = np.broadcast_to(COLOURS[:, None, None], (5, 8, 8, 3)).copy()


def rows_of_tiles(picture: np.ndarray) -> list[list[int]]:
    """Which of COLOURS stand in each row of a picture, left to right, found by looking for runs of pure colour."""
    index = np.full(picture.shape[:2], -1)
    for i, colour in enumerate(COLOURS):
        index[(picture == colour).all(-1)] = i
    rows, previous = [], []
    for line in index:
        runs = [int(a) for a, b in zip(line, np.append(-1, line[:-1]), strict=True) if a >= 0 and a != b]
        if runs and runs != previous:
            rows.append(runs)
        previous = runs
    return rows


def test_a_grid_holds_every_image_in_reading_order():
    assert rows_of_tiles(image_grid(IMAGES, columns=2)) == [[0, 1], [2, 3], [4]]


def test_small_images_are_enlarged_pixel_for_pixel_and_large_ones_are_untouched():
    small = RNG.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    picture = image_grid(small, columns=1)
    inside = picture[12:-12, 12:-12]
    np.testing.assert_array_equal(inside, small[0].repeat(8, axis=0).repeat(8, axis=1))
    large = RNG.integers(0, 256, (1, 70, 80, 3), dtype=np.uint8)
    np.testing.assert_array_equal(image_grid(large, columns=1)[12:-12, 12:-12], large[0])


def test_originals_stand_over_their_reconstructions():
    picture = reconstruction_grid(IMAGES[:3], {"decoder": IMAGES[2:5]}, columns=2, title="epoch 3")
    assert rows_of_tiles(picture) == [[0, 1], [2, 3], [2], [4]]


def test_each_group_is_a_row_of_its_members():
    assert rows_of_tiles(grouped_grid(IMAGES, [("2", np.array([1, 3])), ("7", np.array([0, 2]))])) == [[1, 3], [0, 2]]


def test_titles_labels_and_captions_are_drawn_without_covering_images():
    plain = image_grid(IMAGES, columns=5)
    captioned = image_grid(IMAGES, columns=5, captions=list("abcde"), title="samples")
    assert captioned.shape[0] > plain.shape[0]
    assert rows_of_tiles(captioned) == [[0, 1, 2, 3, 4]]
    below = captioned[-30:]
    assert (below.min(axis=-1) < 128).any()
    named, unnamed = (grouped_grid(IMAGES, [(name, np.arange(5))]) for name in ("five and more", ""))
    assert named.shape[1] > unnamed.shape[1]


def test_pictures_are_saved_whole(tmp_path):
    picture = image_grid(IMAGES, columns=3, title="samples")
    save_png(tmp_path / "new" / "grid.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "grid.png")), picture)
    assert os.listdir(tmp_path / "new") == ["grid.png"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: image_grid(IMAGES / 255, columns=2), "images of a grid are float64"),
        (lambda: image_grid(IMAGES, columns=2, captions=["a"]), "1 captions for 5 images"),
        (lambda: reconstruction_grid(IMAGES, {"decoder": IMAGES[:2]}), "decoder images have shape"),
    ],
)
def test_images_that_do_not_fit_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def write_metrics(path, *, last_line=""):
    records = [{"stage": "flow", "step": i, "loss": 1000.0 * 0.5**i, "fid": None if i % 2 else 3.0} for i in range(12)]
    records.insert(4, {"stage": "decoder", "step": 0, "l1": 0.5})
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + last_line)
    return path


def test_curves_of_a_stage_are_drawn_despite_an_interrupted_last_line(tmp_path):
    picture = curves(write_metrics(tmp_path / "metrics.jsonl", last_line='{"stage": "fl'), "flow")
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    drawn = (np.abs(picture.astype(int) - [0x2A, 0x6F, 0x97]).sum(-1) < 30).any(axis=0)
    half = len(drawn) // 2
    assert drawn[:half].any()
    assert drawn[half:].any()


def test_one_chosen_metric_gives_one_panel(tmp_path):
    metrics = write_metrics(tmp_path / "metrics.jsonl")
    assert curves(metrics, "flow", ["loss"]).shape[1] * 2 == curves(metrics, "flow").shape[1]


@pytest.mark.parametrize(
    ("stage", "names", "message"),
    [("flo", None, r"no metrics of stage 'flo'.*\['decoder', 'flow'\]"), ("flow", ["l1"], r"\['l1'\].*'loss', 'fid'")],
)
def test_a_stage_or_metric_that_was_not_recorded_is_refused(tmp_path, stage, names, message):
    with pytest.raises(ValueError, match=message):
        curves(write_metrics(tmp_path / "metrics.jsonl"), stage, names)


def test_a_line_cut_short_is_left_out(tmp_path):
    metrics = write_metrics(tmp_path / "metrics.jsonl")
    whole = curves(metrics, "flow")
    metrics.write_text("{broken\n" + metrics.read_text() + '{"stage": "flow", "st')
    np.testing.assert_array_equal(curves(metrics, "flow"), whole)
