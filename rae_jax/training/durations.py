"""Durations: a config says each in epochs, images or steps, and `resolve` makes steps of them where a run starts."""

import math
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from ml_collections import ConfigDict

# Each duration has a field in epochs, one in images and one in optimizer steps. At most one of them is not 0.
DURATIONS = (
    ("epochs", "images", "steps"),  # of a stage's training
    ("warmup_epochs", "warmup_images", "warmup_steps"),
    ("decay_end_epoch", "decay_end_image", "decay_end_step"),
    ("lpips_from_epoch", "lpips_from_image", "lpips_from_step"),
    ("gan_from_epoch", "gan_from_image", "gan_from_step"),
    ("discriminator_from_epoch", "discriminator_from_image", "discriminator_from_step"),
    ("pivot_fixed_epochs", "pivot_fixed_images", "pivot_fixed_steps"),
    ("keep_every_epochs", "keep_every_images", "keep_every_steps"),
)
PERIODS = DURATIONS[-1:]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in `images`, as the papers' trainers count an epoch (`drop_last`); at least one."""
    return max(images // batch_size, 1)


def to_steps(*, epochs: float, images: int, steps: int, train_images: int, batch_size: int) -> int:
    """A duration in optimizer steps of `batch_size` images each, from the one of its units that is not 0.

    An epoch is `steps_per_epoch` of the `train_images`; a number of images is reached by the first step that has seen
    as many.
    """
    if epochs:
        return round(epochs * steps_per_epoch(train_images, batch_size))
    return math.ceil(images / batch_size) if images else steps


def in_epochs(config: ConfigDict) -> list[str]:
    """The fields of `config` that say a duration in epochs: those for which the number of images has to be known."""
    return [f"{path}.{epochs}" for path, section, (epochs, _, _), _ in _durations(config) if section[epochs]]


def resolve(
    config: ConfigDict, train_images: int, done: Mapping[str, tuple[int, int]] = MappingProxyType({})
) -> ConfigDict:
    """A copy of `config` with every duration in steps, and 0 in its other units.

    Those of a stage follow its own `train.batch_size`. A discriminator's schedule counts its own updates, one a step,
    so that its epochs begin with the first of them.

    A stage that goes on with another batch size than it began with has made another number of steps than the images
    that it has seen would fill now. What is said in epochs or images is moved by the difference, so that it ends where
    it would have, in images, and a schedule goes on from where it was. What is said in steps is left alone, and so are
    a discriminator's own schedule and the period of the checkpoints that are kept.

    Args:
      config: may be resolved already: then nothing changes.
      train_images: how many images there are to train on; not read if nothing is said in epochs.
      done: of stages that have begun, the steps made and the images seen.

    Raises:
      ValueError: a duration is said in two units, or is negative or infinite, or a batch holds no image; names the
        fields.
    """
    config = config.copy_and_resolve_references()
    for path, section, units, batch_size in _durations(config):
        said = [f"{path}.{name}={section[name]}" for name in units if section[name]]
        if len(said) > 1:
            raise ValueError(f"{' and '.join(said)} say one duration in two units; keep one and set the other to 0")
        if any(not 0 <= section[name] < math.inf for name in units):
            raise ValueError(f"{said[0]} is no duration; it is 0 or more")
        if batch_size < 1:
            raise ValueError(f"{path.split('.')[0]}.train.batch_size={batch_size}; a batch has at least one image")
        epochs, images, steps = (section[name] for name in units)
        duration = to_steps(epochs=epochs, images=images, steps=steps, train_images=train_images, batch_size=batch_size)
        if (epochs or images) and units not in PERIODS and not path.endswith(".discriminator_optimizer"):
            steps_made, images_seen = done.get(path.split(".")[0], (0, 0))
            duration += steps_made - round(images_seen / batch_size)
            # What is over stays so; only of a warm-up the decay after it has to know how long ago that was.
            duration = duration if units[2] == "warmup_steps" else max(duration, 0)
        section[units[2]] = duration
        section[units[0]], section[units[1]] = 0.0, 0
    return config


def give_way(config: ConfigDict, given: Collection[str]) -> None:
    """Clears, in place, the durations that stand in another unit than the one in which the fields `given` say them.

    `given` names what the command line set: it replaces what the experiment says of the same duration, in whatever
    unit that is. Two given units of one duration are both left, for `resolve` to refuse.
    """
    for path, section, units, _ in _durations(config):
        if any(f"{path}.{name}" in given for name in units):
            for name in units:
                if f"{path}.{name}" not in given:
                    section[name] = type(section[name])(0)


def _durations(config: ConfigDict) -> Iterator[tuple[str, ConfigDict, tuple[str, str, str], int]]:
    """Every duration of the stages: path and section that it is in, its three fields, the stage's batch size."""

    def below(path: str, section: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
        yield path, section
        for name, value in section.items():
            if isinstance(value, ConfigDict):
                yield from below(f"{path}.{name}", value)

    for stage, whole in config.items():
        if isinstance(whole, ConfigDict) and "train" in whole:
            for path, section in below(stage, whole):
                for units in DURATIONS:
                    if units[0] in section:
                        yield path, section, units, whole.train.batch_size
