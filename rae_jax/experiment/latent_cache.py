"""What a config and a cache of latents must have in common, so that training from one is training from the images.

`latent_writer.py` stores it beside the latents (`data/latents.py`); `configuration.py` and `stages.py` compare.
"""

import hashlib
import json
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.latent_spaces import latent_space
from rae_jax.data.folders import printable
from rae_jax.data.latents import Description, read_description
from rae_jax.data.sources import Source
from rae_jax.data.transforms import without_flip
from rae_jax.experiment.workdir import with_former
from rae_jax.interop.layout import flatten, unstack_blocks
from rae_jax.interop.weights import architecture_of

DATA = ("source", "train_split", "held_out_share", "image_size")
ENCODER = ("input_size", "image_mean", "image_std")


def settings(config: ConfigDict, transform: str) -> dict[str, Any]:
    """Every setting that decides the latent of an image, by name, as plain values.

    The dtype of matrix products is not one: it decides the rounding only. Nor is the place of the data.

    Args:
      transform: of the images, without a flip.
    """
    found = {"autoencoder": config.autoencoder, "transform": transform, "latent_patch_size": config.latent_patch_size}
    found |= {f"data.{name}": config.data[name] for name in DATA}
    for name, component in sorted(latent_space(config).encoding.items()):
        if component.module is not None:
            found |= {f"{name}.model.{field}": value for field, value in architecture_of(component.module).items()}
        if name == "encoder":
            found |= {f"encoder.{field}": config.encoder[field] for field in ENCODER}
        if name == "coder":
            found["sampling.coder_steps"] = config.sampling.coder_steps
    return json.loads(json.dumps(found))  # as they are read from a file


def digest(params: Any) -> str:
    """A digest of parameters on the host that tells other values from them, whatever file they come from."""
    found = hashlib.sha256()
    for name, value in sorted(flatten(unstack_blocks(params)).items()):
        found.update(f"{name} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value, np.float32))
    return found.hexdigest()


def check_settings(config: ConfigDict, stage: str) -> None:
    """Raises ValueError unless `config.data.latents` is a finished cache of what `stage` would encode."""
    where = f"data.latents={config.data.latents!r}"
    try:
        found = read_description(config.data.latents)
        transform, _ = without_flip(config[stage].train.transform)
    except ValueError as error:
        raise ValueError(f"{where}: {error}, or set data.latents='' to train on the images") from None
    ours = settings(config, transform)
    theirs = with_former(found.encoded_by, ours)
    differing = [
        f"  {name}: {theirs.get(name, 'absent')!r} there, {ours.get(name, 'absent')!r} in {stage!r}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if (shape := latent_space(config).shape) != found.shape:
        differing.append(f"  shape of a latent: {found.shape} there, {shape} in {stage!r}")
    if differing:
        raise ValueError(
            f"{where} was made by another config:\n"
            + "\n".join(differing)
            + "\nmake another cache with tools.cache_latents, set these fields as they were, or set data.latents=''"
        )


def check_data(config: ConfigDict, source: Source) -> None:
    """Raises ValueError unless `config.data.latents` has as many images and the same labels as the data `source`.

    A cache without the names of its classes is of the time when those of a folder were in the order of strings.
    """
    found: Description = read_description(config.data.latents)
    for what, there, here in (
        ("images", found.images, len(source)),
        ("classes", found.classes, source.num_classes),
    ):
        if there != here:
            raise ValueError(
                f"data.latents={config.data.latents!r} is of {there} {what}, and the training data have {here}; make "
                "another cache with tools.cache_latents, or give the data that it was made of"
            )
    ours = tuple(source.class_names)
    theirs = found.class_names or (tuple(sorted(ours)) if config.data.source == "folder" else ours)
    if theirs != ours:
        there, here = next(pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"data.latents={config.data.latents!r} has another class under a label than the training data: "
            f"{printable(there)!r}, not {printable(here)!r}; make another cache with tools.cache_latents"
        )


def check_weights(config: ConfigDict, component: str, params: Any) -> None:
    """Raises ValueError unless `params`, those of `component` on the host, have made `config.data.latents`."""
    found = read_description(config.data.latents).weights.get(component)
    if digest(jax.tree.map(np.asarray, params)) != found:
        raise ValueError(
            f"data.latents={config.data.latents!r} was made by other weights of {component!r} than this run's; give "
            f"those (config.{component}.weights), or make another cache with tools.cache_latents"
        )
