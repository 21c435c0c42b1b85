"""What a run generates: samples by the thousand as files, and seed grids, each with its picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components import catalogue as components
from rae_jax.evaluation import pictures
from rae_jax.sampling.batches import Load, PartialSamples, choose_labels, sample_batches
from rae_jax.sampling.generator import Generator, few_step_names, flow_map_generator, generator, guiding_component
from rae_jax.sampling.samples import write_png_folder, write_samples
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog

SEEDS = 8  # columns of a seed grid


def generate(
    config: ConfigDict,
    load: Load,
    mesh: jax.sharding.Mesh,
    workdir: Path,
    log: RunLog,
    identity: Callable[[str], str],
    *,
    velocity: bool,
    flow_map: str | None,
) -> None:
    """Writes `config.sampling.num_samples` images of the classes `config.sampling.labels` says, and pictures of some.

    `samples.npz` with the velocity network if `velocity` (and `config.sampling.num_steps` is not 0);
    `samples_1step.npz` and so on with the component `flow_map` if there is one. With `config.sampling.png` also a
    folder of PNG files each. What a killed run has made is not made again.

    Args:
      identity: tells one version of a component's weights from another.
    """
    sampling, size = config.sampling, config.data.image_size
    labels = choose_labels(sampling.labels, sampling.num_samples, config.flow.num_classes, config.seed)
    first, unconditional = jax.process_index() == 0, sampling.labels == "unconditional"
    asked = {k: v for k, v in sampling.to_dict().items() if k not in ("batch_size", "flow_map_times", "png")}
    decoding, guide = components.latent_space(config).decoding, guiding_component(config)
    for name, (network, generate_batch) in _jobs(config, velocity, flow_map).items():
        path = workdir / f"{name}.npz"
        parts = (network, "stats", *decoding, *([guide] if guide and network == "flow" else []))
        request = {"seed": config.seed, "sampling": asked, "weights": {part: identity(part) for part in parts}}
        partial = PartialSamples(path, (len(labels), size, size, 3), request) if first else None
        done = sharding.of_first_process(partial.done if first else 0)
        if done:
            log.say(f"{name}: continuing after {done} samples")
        with log.progress(name, len(labels), done) as display:
            indices = np.arange(done, len(labels))
            for images in sample_batches(config, load, mesh, labels[done:], network, generate_batch, indices):
                done += len(images)
                if first:
                    partial.append(images)
                display.advance(done)
        if first:
            write_samples(path, partial.images, None if unconditional else labels)
            if sampling.png:
                write_png_folder(workdir / name, partial.images, None if unconditional else labels)
            if unconditional:
                picture = pictures.image_grid(partial.images[:100], columns=10)
            else:  # a row a class: more than ten would not fit on a screen
                chosen = np.concatenate([np.flatnonzero(labels == label)[:10] for label in np.unique(labels)[:10]])
                picture = pictures.class_grid(partial.images[chosen], labels[chosen], columns=10)
            pictures.save_png(path.with_suffix(".png"), picture)
            partial.remove()
        log.say(f"{name}: {len(labels)} in {path}, some of them in {path.with_suffix('.png')}")


def seed_grid(
    config: ConfigDict,
    load: Load,
    mesh: jax.sharding.Mesh,
    workdir: Path,
    log: RunLog,
    classes: Sequence[int],
    *,
    velocity: bool,
    flow_map: str | None,
) -> None:
    """Writes `seed_grid.png` (and `seed_grid_1step.png`...): a row for each of `classes`, a column for each noise.

    Raises:
      ValueError: there is no such class.
    """
    if unknown := [label for label in classes if not 0 <= label < config.flow.num_classes]:
        raise ValueError(f"--seed_grid: there are no classes {unknown}, but 0 to {config.flow.num_classes - 1}")
    labels = np.repeat(np.asarray(classes, np.int32), SEEDS)
    indices = np.tile(np.arange(SEEDS), len(classes))
    for name, (network, generate_batch) in _jobs(config, velocity, flow_map).items():
        batches = sample_batches(config, load, mesh, labels, network, generate_batch, indices)
        images = np.concatenate(list(batches))
        path = workdir / f"{name.replace('samples', 'seed_grid')}.png"
        if jax.process_index() == 0:
            pictures.save_png(path, pictures.class_grid(images, labels, columns=SEEDS))
        log.say(f"{path}: classes {list(classes)}, a column a noise")


def _jobs(config: ConfigDict, velocity: bool, flow_map: str | None) -> dict[str, tuple[str, Generator]]:
    """What is to be sampled: name -> the component and the generation with it."""
    jobs = {}
    if velocity and config.sampling.num_steps:
        jobs["samples"] = ("flow", generator(config, guide=guiding_component(config)))
    if flow_map:
        jobs |= {
            f"samples{end}": (flow_map, flow_map_generator(config, t)) for end, t in few_step_names(config).items()
        }
    return jobs
