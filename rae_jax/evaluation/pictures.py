"""Pictures of a run: grids of samples and reconstructions, and curves of its metrics, as arrays and as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from rae_jax.files import read_json_lines
from rae_jax.sampling.samples import check_images

PAPER, INK, ACCENT = (255, 255, 255), (60, 60, 60), "#2a6f97"
MIN_TILE = 64  # smaller images are enlarged by a whole factor, pixel for pixel


def image_grid(
    images: np.ndarray, *, columns: int, captions: Sequence[str] | None = None, title: str = ""
) -> np.ndarray:
    """`images: [N, H, W, 3]` uint8 in rows of `columns`, each over its caption; a picture `[H', W', 3]` uint8."""
    check_images(images, "images of a grid")
    captions = [""] * len(images) if captions is None else captions
    if len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    cells = list(zip(images, captions, strict=True))
    return _sheet([("", cells[i : i + columns]) for i in range(0, len(cells), columns)], title=title)


def reconstruction_grid(
    originals: np.ndarray, reconstructions: Mapping[str, np.ndarray], *, columns: int = 8, title: str = ""
) -> np.ndarray:
    """Each original over its reconstructions, which are named; all uint8 `[N, H, W, 3]` of one shape."""
    sets = {"original": originals, **reconstructions}
    for name, images in sets.items():
        check_images(images, f"{name} images")
        if images.shape != originals.shape:
            raise ValueError(f"{name} images have shape {images.shape}, the originals {originals.shape}")
    rows = [
        (name, [(image, "") for image in images[start : start + columns]])
        for start in range(0, len(originals), columns)
        for name, images in sets.items()
    ]
    return _sheet(rows, title=title, rows_together=len(sets))


def grouped_grid(images: np.ndarray, groups: Sequence[tuple[str, np.ndarray]], *, title: str = "") -> np.ndarray:
    """A row for each group, its caption on the left: of `images: [N, H, W, 3]` uint8 those with the group's numbers."""
    check_images(images, "images of a grid")
    return _sheet([(caption, [(images[i], "") for i in members]) for caption, members in groups], title=title)


def curves(metrics: str | Path, stage: str, names: Sequence[str] | None = None) -> np.ndarray:
    """One panel for each metric of `stage` against its step, from a run's `metrics.jsonl`; a picture.

    `names` chooses the metrics and their order; without it, all of them in order of appearance. Positive metrics that
    span more than two decades are on a logarithmic axis. A last line cut short by an interruption is left out.
    """
    series = _read_series(Path(metrics), stage)
    names = list(series) if names is None else names
    if unknown := [name for name in names if name not in series]:
        raise ValueError(f"{metrics} has no metrics {unknown} for stage {stage!r}; it has {list(series)}")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), dpi=120, layout="constrained")
    figure.suptitle(stage, fontsize=11)
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, i + 1)
        steps, values = np.array(series[name], dtype=float).T
        axes.plot(steps, values, color=ACCENT, linewidth=1.2, marker="." if len(steps) < 20 else None)
        finite = values[np.isfinite(values)]
        if len(finite) and finite.min() > 0 and finite.max() > 100 * finite.min():
            axes.set_yscale("log")
        axes.set_title(name, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("step", fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _read_series(metrics: Path, stage: str) -> dict[str, list[tuple[float, float]]]:
    """(step, value) pairs of each metric of `stage`."""
    series: dict[str, list[tuple[float, float]]] = {}
    stages = set()
    for _, record in read_json_lines(metrics, cut_short=True):
        stages.add(record["stage"])
        if record["stage"] == stage:
            for name, value in record.items():
                if name not in ("stage", "step") and value is not None:
                    series.setdefault(name, []).append((record["step"], value))
    if not series:
        raise ValueError(f"{metrics} has no metrics of stage {stage!r}; it has stages {sorted(stages)}")
    return series


def _sheet(
    rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]], *, title: str, rows_together: int = 1
) -> np.ndarray:
    """Rows of (label, cells), a cell being (image, caption); a wider gap follows every `rows_together` rows."""
    height, width = rows[0][1][0][0].shape[:2]
    factor = max(1, -(-MIN_TILE // min(height, width)))
    height, width = height * factor, width * factor
    font = ImageFont.load_default(size=min(max(height // 6, 12), 18))
    title_font = ImageFont.load_default(size=min(max(height // 5, 14), 22))
    line = sum(font.getmetrics())
    margin, gap = 12, 4
    captioned = any(caption for _, cells in rows for _, caption in cells)
    label_width = max(int(np.ceil(font.getlength(label))) for label, _ in rows)
    left = margin + (label_width + 2 * gap if label_width else 0)
    top = margin + (sum(title_font.getmetrics()) + 2 * gap if title else 0)
    pitch = height + gap + (line + gap if captioned else 0)
    breaks = 2 * gap if rows_together > 1 else 0
    columns = max(len(cells) for _, cells in rows)
    grid_width = columns * (width + gap) - gap
    sheet = Image.new(
        "RGB",
        (
            max(left + grid_width, margin + int(np.ceil(title_font.getlength(title)))) + margin,
            top + len(rows) * pitch - gap + (len(rows) - 1) // rows_together * breaks + margin,
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), title, fill=INK, font=title_font)
    for r, (label, cells) in enumerate(rows):
        y = top + r * pitch + r // rows_together * breaks
        draw.text((margin + label_width, y + height / 2), label, fill=INK, font=font, anchor="rm")
        for c, (image, caption) in enumerate(cells):
            x = left + c * (width + gap)
            tile = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (x, y))
            draw.text((x + width / 2, y + height + 2), caption, fill=INK, font=font, anchor="ma")
    return np.asarray(sheet)
