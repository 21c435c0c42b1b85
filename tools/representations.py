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
from ml_collections import ConfigDict, config_flags
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import ConfusionMatrixDisplay

from rae_jax.components import catalogue as components
from rae_jax.evaluation import pictures
from rae_jax.evaluation.evaluate import Features, in_batches
from rae_jax.evaluation.linear_probe import linear_probe, probe_accuracy
from rae_jax.experiment.configuration import check
from rae_jax.experiment.stages import Pipeline, open_sources
from rae_jax.files import whole_file
from rae_jax.flow import samplers
from rae_jax.flow.times import sampling_times
from rae_jax.main import CONFIG, WORKDIR, parse
from rae_jax.sampling.batches import load_components
from rae_jax.sampling.generator import sample_keys
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog

SHOWN = 8  # images of "latents", states of "trajectories"


def first_images(pipeline: Pipeline, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images of `split`, uint8 `[N, H, W, 3]`, and their labels `[N]`."""
    images, labels, batches = [], [], pipeline.one_epoch(split, 64)
    for batch in batches:
        images.append(batch["image"][batch["mask"]])
        labels.append(batch["label"][batch["mask"]])
        if sum(map(len, labels)) >= count:
            break
    batches.close()
    return np.concatenate(images)[:count], np.concatenate(labels)[:count]


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


def tsne(pipeline: Pipeline, features: Features, count: int) -> Figure:
    """The encoder's mean tokens of held-out images on a plane."""
    images, labels = first_images(pipeline, "test", count)
    points = TSNE(perplexity=min(30, len(images) / 4), random_state=0).fit_transform(
        in_batches(features.of, images, min(64, len(images)))
    )
    figure = Figure(figsize=(6, 6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    dots = axes.scatter(*points.T, c=labels, cmap="tab10" if labels.max() < 10 else "nipy_spectral", s=9)
    if labels.max() < 20:
        axes.legend(*dots.legend_elements(num=None), fontsize=8, frameon=False, loc="best")
    axes.set_axis_off()
    return figure


def probe(pipeline: Pipeline, features: Features, count: int) -> Figure:
    """What a linear probe on the mean tokens takes held-out images for."""
    (train, train_labels), (held_out, labels) = (first_images(pipeline, split, count) for split in ("train", "test"))
    of_train, of_held_out = (in_batches(features.of, images, min(64, len(images))) for images in (train, held_out))
    model = linear_probe(of_train, train_labels)
    print(f"linear probe: {100 * probe_accuracy(model, of_held_out, labels):.2f} % of {len(labels)} held-out images")
    figure = Figure(figsize=(6, 6), dpi=120, layout="constrained")
    classes = len(np.unique(train_labels))
    ConfusionMatrixDisplay.from_predictions(
        labels, model.predict(of_held_out), ax=figure.add_subplot(), cmap="Blues", colorbar=False,
        include_values=classes <= 20, normalize=None,
    )  # fmt: skip
    return figure


def latents(pipeline: Pipeline, space: components.LatentSpace) -> np.ndarray:
    """Images over their latents."""
    images, _ = first_images(pipeline, "test", SHOWN)
    weights = load_components(pipeline.config, pipeline.load, *space.encoding)
    z = jax.jit(lambda weights, x: space.encode(weights, x.astype(jnp.float32) / 255.0))(weights, images)
    coloured = enlarged(token_colours(np.asarray(z)), images.shape[1])
    blank = np.zeros_like(images)
    blank[:, : coloured.shape[1], : coloured.shape[2]] = coloured
    return pictures.reconstruction_grid(images, {"latents": blank}, columns=SHOWN)


def trajectories(pipeline: Pipeline, space: components.LatentSpace) -> np.ndarray:
    """States of the flow from noise to data, one row for each of the first classes."""
    config = pipeline.config
    weights = load_components(config, pipeline.load, "flow")["flow"]
    model, num_steps = components.velocity_model(config), max(config.sampling.num_steps, SHOWN)
    times = sampling_times(num_steps, shift=components.time_shift(config), grid=config.sampling.grid)
    labels = np.arange(min(config.flow.num_classes, 10), dtype=np.int32)

    @jax.jit
    def walk(params: Any) -> jax.Array:
        keys = sample_keys(config.seed, jnp.arange(len(labels)))
        noise = jax.vmap(lambda key: jax.random.normal(key, space.shape))(keys)
        return samplers.euler(
            lambda z, t: model.apply({"params": params}, z, t, labels), noise, times, trajectory=True
        )  # [T, B, N, C]

    chosen = np.linspace(0, num_steps, SHOWN).round().astype(int)
    states = np.asarray(walk(weights))[chosen].swapaxes(0, 1)  # a row of states for each class
    coloured = token_colours(states.reshape(-1, *states.shape[2:]))
    return pictures.class_grid(coloured, labels.repeat(SHOWN), columns=SHOWN)


def main(arguments: list[str]) -> None:
    del arguments
    if CONFIG.value is None:
        raise app.UsageError("--config=FILE is missing; try --config=configs/digits.py")
    if not WORKDIR.value:
        raise app.UsageError("--workdir=DIRECTORY is missing: where the run is, and where the picture goes")
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    try:
        print(show(CONFIG.value, file, Path(WORKDIR.value), SHOW.value, COUNT.value))
    except ValueError as error:
        sys.exit(f"error: {error}")


def show(config: ConfigDict, file: str, workdir: Path, kind: str, count: int) -> Path:
    """Writes the picture `kind` into `workdir`; errors as the pipeline's."""
    check(config, file=file, num_devices=jax.device_count())
    mesh = sharding.make_mesh(config.mesh.to_dict())
    path = workdir / f"{kind}.png"
    with sharding.use(mesh):
        pipeline = Pipeline(config, {}, open_sources(config), workdir, mesh, RunLog(workdir, active=False))
        if kind in ("tsne", "probe"):
            draw = {"tsne": tsne, "probe": probe}[kind]
            figure = draw(pipeline, Features(config, pipeline.load, mesh), count)
            with whole_file(path) as stream:
                figure.savefig(stream, format="png")
        else:
            draw = {"latents": latents, "trajectories": trajectories}[kind]
            pictures.save_png(path, draw(pipeline, components.latent_space(config)))
    return path


if __name__ == "__main__":
    SHOW = flags.DEFINE_enum("show", "tsne", ["tsne", "probe", "latents", "trajectories"], "Which picture.")
    COUNT = flags.DEFINE_integer("count", 2000, "Images of tsne; of each split, for probe.")
    app.run(main, flags_parser=parse)
