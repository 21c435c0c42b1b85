"""RAE's theorem: what a diffusion transformer narrower than its tokens cannot fit, however deep it is."""

import itertools
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

from rae_jax.files import whole_file
from tools.findings.runs import ROOT, Run, run
from tools.findings.seeds import shown

CONFIG = "configs/overfit.py"
SEEDS = (0, 1, 2)
TOKENS, WIDTH, DEPTH = 64, 32, 4  # where something else is changed
WIDTHS = (16, 32, 48, 64, 96, 128)
DEPTHS = (2, 4, 8, 16)
GRID = (32, 64, 128)  # token dimensions and widths
HEAD = 128  # the width of the wide head
LAST = 200  # steps at the end whose mean loss is given
PLOT = ROOT / "docs" / "rae_width.png"

Losses = dict[str, np.ndarray]  # by variant of the config: one a seed


def bound(tokens: int, width: int) -> float:
    """The least loss of a network of `width` on one image of tokens with `tokens` channels (RAE, Theorem 1).

    What it gives lies in a space of `width` dimensions of the tokens' `tokens`; of the noise, whose covariance is the
    identity, the rest is left over.
    """
    return max(0.0, (tokens - width) / tokens)


def variant(tokens: int = TOKENS, width: int = WIDTH, depth: int = DEPTH, head: int = 0) -> str:
    """The config's."""
    return f"laptop-{tokens}-{width}-{depth}" + (f"-{head}" if head else "")


def reproduce(workdir: Path, digits: Path) -> str:
    """Overfits one digit by 16 networks from three seeds each, about 30 minutes on two cores; returns the section."""
    del digits
    folder = one_digit(workdir / "image")
    variants = [variant(width=width) for width in WIDTHS]
    variants += [variant(depth=depth) for depth in DEPTHS]
    variants += [variant(tokens, width) for tokens, width in itertools.product(GRID, GRID)]
    variants += [variant(head=HEAD)]
    losses = {}
    for name in dict.fromkeys(variants):
        given = {"data.path": str(folder.resolve())}
        runs = [run(workdir / f"{name}_{seed}", f"{CONFIG}:{name}", given | {"seed": seed}) for seed in SEEDS]
        losses[name] = np.array([last_loss(this) for this in runs])
    draw(losses)
    return section(losses)


def one_digit(folder: Path) -> Path:
    """Writes the folder that holds one image, a digit of 32 x 32 pixels."""
    image = folder / "digits" / "0.png"
    if not image.exists():
        image.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.uint8(load_digits().images[0] * (255 / 16))
        Image.fromarray(pixels).convert("RGB").resize((32, 32), Image.Resampling.NEAREST).save(image)
    return folder


def last_loss(this: Run) -> float:
    """Mean loss of the last steps."""
    losses = this.metric("flow", "loss")
    return float(np.mean([value for step, value in losses.items() if step > max(losses) - LAST]))


def section(losses: Losses) -> str:
    """The Markdown of the finding; what it says of the numbers follows from them."""

    def cell(name: str) -> str:
        return shown(losses[name])

    widths = [f"| {width} | {bound(TOKENS, width):.3f} | {cell(variant(width=width))} |" for width in WIDTHS]
    depths = [f"| {depth} | {bound(TOKENS, WIDTH):.3f} | {cell(variant(depth=depth))} |" for depth in DEPTHS]
    grid = [
        f"| {tokens} | " + " | ".join(f"{cell(variant(tokens, w))} ({bound(tokens, w):.2f})" for w in GRID) + " |"
        for tokens in GRID
    ]
    narrow = [name for name in losses if name != variant(head=HEAD) and _bound_of(name) > 0]
    above = all((losses[name] > _bound_of(name)).all() for name in narrow)
    least = min(narrow, key=lambda name: losses[name].mean() - _bound_of(name))
    wide, deepest = losses[variant(head=HEAD)].mean(), losses[variant(depth=DEPTHS[-1])].mean()
    fits = bound(TOKENS, WIDTH)
    return "\n".join(
        [
            "## RAE: the width of the generator and that of its tokens",
            "",
            f"`python -m tools.reproduce rae_width`. One digit of 16 tokens, overfitted for 1,200 steps of 32 copies "
            f"(`{CONFIG}:{variant()}` and its like); mean loss of the last {LAST} steps, mean and deviation of "
            f"{len(SEEDS)} seeds. The bound is RAE's Theorem 1, (n - d) / n for tokens of n channels and a network of "
            "width d < n.",
            "",
            f"Tokens of {TOKENS} channels, depth {DEPTH}:",
            "",
            "| width | bound | loss |",
            "|---|---|---|",
            *widths,
            "",
            f"The same with width {WIDTH}:",
            "",
            "| depth | bound | loss |",
            "|---|---|---|",
            *depths,
            "",
            f"Token dimension against width, depth {DEPTH}, bounds in brackets:",
            "",
            "| token dimension | " + " | ".join(f"width {width}" for width in GRID) + " |",
            "|---|" + "---|" * len(GRID),
            *grid,
            "",
            f"A head of two blocks of width {HEAD} on the backbone of width {WIDTH} (DiT^DH): "
            f"{cell(variant(head=HEAD))}.",
            "",
            "![Loss against width, with the bound](rae_width.png)",
            "",
            f"- {'No' if above else 'A'} narrow network comes below its bound; nearest is width "
            f"{_numbers(least)[1]} and depth {_numbers(least)[2]} on {_numbers(least)[0]} channels, "
            f"{losses[least].mean() - _bound_of(least):.3f} above.",
            f"- From depth {DEPTHS[0]} to {DEPTHS[-1]} the narrow network's loss goes from "
            f"{losses[variant(depth=DEPTHS[0])].mean():.3f} to {deepest:.3f}, of which {fits:.3f} cannot be had.",
            f"- The wide head brings {losses[variant()].mean():.3f} to {wide:.3f}: "
            f"{'below' if wide < fits else 'not below'} the bound of its backbone.",
        ]
    )


def _numbers(name: str) -> list[int]:
    """Token dimension, width and depth of a variant."""
    return [int(word) for word in name.split("-")[1:4]]


def _bound_of(name: str) -> float:
    return bound(*_numbers(name)[:2])


def draw(losses: Losses) -> None:
    """Loss against width, the bound, depth and the wide head beside it."""
    figure = Figure(figsize=(6, 3.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(129), [bound(TOKENS, width) for width in range(129)], "k--", linewidth=1, label="bound")
    means = [losses[variant(width=width)].mean() for width in WIDTHS]
    axes.plot(WIDTHS, means, "o-", label=f"depth {DEPTH}")
    deep = losses[variant(depth=DEPTHS[-1])].mean()
    axes.plot([WIDTH], [deep], "s", label=f"width {WIDTH}, depth {DEPTHS[-1]}")
    axes.plot([WIDTH], [losses[variant(head=HEAD)].mean()], "*", markersize=11, label=f"with a head of width {HEAD}")
    axes.set(xlabel="width of the network", ylabel="loss", ylim=(0, 1))
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with whole_file(PLOT) as file:
        figure.savefig(file, format="png")
