"""Pictures of what an encoder's features and a generator's latents hold.

    python -m tools.representations --config=configs/digits.py --workdir=runs/digits --show=tsne

What `--show` may be; the picture is `<workdir>/<name>.png`:
  tsne          t-SNE of the encoder's mean tokens of held-out images, coloured by class (RAE, Figure 17)
  probe         confusion matrix of a linear probe on them, trained on the training images; prints its accuracy
  latents       held-out images over their latents: the three principal components of all tokens as colours
  trajectories  likewise the latents that the flow walks through from noise (left) to data, a row a class
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import ConfusionMatrixDisplay

from rae_jax.components.conditions import condition
from rae_jax.components.generators import time_shift, velocity_network
from rae_jax.components.latent_spaces import LatentSpace, latent_space
from rae_jax.evaluation import pictures
from rae_jax.evaluation.evaluator import Batch, Evaluator, Needs
from rae_jax.evaluation.features import of_encoder
from rae_jax.evaluation.linear_probe import linear_probe, probe_accuracy
from rae_jax.experiment import flags as experiment
from rae_jax.experiment.configuration import check, resolved
from rae_jax.experiment.dataset import captioned, class_names
from rae_jax.experiment.stages import Stages, open_sources
from rae_jax.files import whole_file
from rae_jax.flow import samplers
from rae_jax.flow.times import sampling_times
from rae_jax.sampling.generator import sample_keys
from rae_jax.sampling.samples import save_png
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog

SHOWN = 8  # images of "latents", states of "trajectories"


def first_features(stages: Stages, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the first `count` images of `split` the encoder's mean tokens `[N, D]` and the labels `[N]`."""
    look = of_encoder(stages.config)
    needs = Needs(rows=frozenset(("encoder.mean_token", "label")))

    def measure(params: Any, batch: Batch) -> dict[str, dict[str, jax.Array]]:
        return {split: look.measure(params, {split: batch["image"]}, {split: needs})[split] | {"label": batch["label"]}}

    params = {name: stages.weights.load(component) for name, component in look.parts.items()}
    found = Evaluator(stages.mesh, measure, {split: needs})(params, stages.images(split, count))[split]
    return found.rows["encoder.mean_token"], found.rows["label"]


def token_colours(tokens: np.ndarray) -> np.ndarray:
    """`[M, N, C]` tokens of M square grids as pictures `[M, h, w, 3]` uint8: their three principal components.

    The components are those of all tokens together; each fills the range of brightness between its first and last
    percentile.
    """
    flat = tokens.reshape(-1, tokens.shape[-1])
    projected = PCA(3, random_state=0).fit_transform(flat)
    low, high = np.percentile(projected, [1, 99], axis=0)
    colours = np.clip((projected - low) / (high - low), 0, 1)
    side = round(tokens.shape[1] ** 0.5)
    return (255 * colours).round().astype(np.uint8).reshape(len(tokens), side, side, 3)


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """Images `[M, h, w, 3]` with every pixel repeated to fill `size x size`, as far as that divides."""
    times = max(1, size // images.shape[1])
    return images.repeat(times, axis=1).repeat(times, axis=2)


def tsne(stages: Stages, count: int) -> Figure:
    """The encoder's mean tokens of held-out images on a plane."""
    features, labels = first_features(stages, "test", count)
    points = TSNE(perplexity=min(30, len(features) / 4), random_state=0).fit_transform(features)
    figure = Figure(figsize=(6, 6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    dots = axes.scatter(*points.T, c=labels, cmap="tab10" if labels.max() < 10 else "nipy_spectral", s=9)
    if labels.max() < 20:
        axes.legend(*dots.legend_elements(num=None), fontsize=8, frameon=False, loc="best")
    axes.set_axis_off()
    return figure


def probe(stages: Stages, count: int) -> Figure:
    """What a linear probe on the mean tokens takes held-out images for."""
    (of_train, train_labels), (of_held_out, labels) = (first_features(stages, s, count) for s in ("train", "test"))
    model = linear_probe(of_train, train_labels)
    print(f"linear probe: {100 * probe_accuracy(model, of_held_out, labels):.2f} % of {len(labels)} held-out images")
    figure = Figure(figsize=(6, 6), dpi=120, layout="constrained")
    classes = len(np.unique(train_labels))
    ConfusionMatrixDisplay.from_predictions(
        labels, model.predict(of_held_out), ax=figure.add_subplot(), cmap="Blues", colorbar=False,
        include_values=classes <= 20, normalize=None,
    )  # fmt: skip
    return figure


def latents(stages: Stages, space: LatentSpace) -> np.ndarray:
    """Images over their latents."""
    (batch,) = stages.images("test", SHOWN)
    images = np.asarray(batch["image"])[np.asarray(batch["mask"])]
    weights = {name: stages.weights.load(component) for name, component in space.encoding.items()}
    z = jax.jit(lambda weights, x: space.encode(weights, x.astype(jnp.float32) / 255.0))(weights, images)
    coloured = enlarged(token_colours(np.asarray(z)), images.shape[1])
    blank = np.zeros_like(images)
    blank[:, : coloured.shape[1], : coloured.shape[2]] = coloured
    return pictures.reconstruction_grid(images, {"latents": blank}, columns=SHOWN)


def trajectories(stages: Stages, space: LatentSpace) -> np.ndarray:
    """States of the flow from noise to data, one row for each of the first classes."""
    config, told = stages.config, condition(stages.config)
    if not told.num_classes:
        raise ValueError("--show=trajectories draws a row a class, and the images have no classes")
    network, num_steps = velocity_network(config), max(config.sampling.num_steps, SHOWN)
    times = sampling_times(num_steps, shift=time_shift(config), grid=config.sampling.grid)
    names = [str(label) for label in range(min(told.num_classes, 10))]
    asked = told.asked(names)

    @jax.jit
    def walk(params: Any) -> jax.Array:
        keys = sample_keys(config.seed, jnp.arange(len(names)))
        noise = jax.vmap(lambda key: jax.random.normal(key, space.shape))(keys)
        return samplers.euler(
            lambda z, t: network.apply(params, z, t, asked), noise, times, trajectory=True
        )  # [T, B, N, C]

    chosen = np.linspace(0, num_steps, SHOWN).round().astype(int)
    states = np.asarray(walk(stages.weights.load(network)))[chosen].swapaxes(0, 1)  # a row of states for each class
    coloured = token_colours(states.reshape(-1, *states.shape[2:]))
    rows = [(name, np.arange(i * SHOWN, (i + 1) * SHOWN)) for i, name in enumerate(names)]
    return pictures.grouped_grid(coloured, captioned(rows, class_names(stages.workdir)))


def main(arguments: list[str]) -> None:
    del arguments
    config, file = experiment.config(), experiment.config_file()
    try:
        print(show(config, file, experiment.workdir(), SHOW.value, COUNT.value))
    except ValueError as error:
        sys.exit(f"error: {error}")


def show(config: ConfigDict, file: str, workdir: Path, kind: str, count: int) -> Path:
    """Writes the picture `kind` into `workdir`; errors as the stages'."""
    config = resolved(config, workdir)
    check(config, file=file, num_devices=jax.device_count())
    mesh = sharding.make_mesh(config.mesh.to_dict())
    path = workdir / f"{kind}.png"
    with sharding.use(mesh):
        stages = Stages(config, {}, open_sources(config, workdir), workdir, mesh, RunLog(workdir, active=False))
        if kind in ("tsne", "probe"):
            draw = {"tsne": tsne, "probe": probe}[kind]
            figure = draw(stages, count)
            with whole_file(path) as stream:
                figure.savefig(stream, format="png")
        else:
            draw = {"latents": latents, "trajectories": trajectories}[kind]
            save_png(path, draw(stages, latent_space(config)))
    return path


if __name__ == "__main__":
    SHOW = flags.DEFINE_enum("show", "tsne", ["tsne", "probe", "latents", "trajectories"], "Which picture.")
    COUNT = flags.DEFINE_integer("count", 2000, "Images of tsne; of each split, for probe.")
    app.run(main, flags_parser=experiment.parse)
