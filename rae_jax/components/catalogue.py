"""Every component that an experiment may have, and which of its stages trains it."""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from rae_jax.components import critics, decoders, encoders, generators, language, latent_spaces, mixtures
from rae_jax.components.component import RANDOM, Component

CATALOGUE: dict[str, Callable[[ConfigDict], Component]] = {
    "encoder": encoders.encoder,
    "decoder": decoders.decoder,
    "feature_stats": latent_spaces.feature_stats,
    "bridge_encoder": latent_spaces.bridge_encoder,
    "bridge_decoder": latent_spaces.bridge_decoder,
    "teacher": latent_spaces.teacher,
    "coder": latent_spaces.coder,
    "tuned_coder": functools.partial(latent_spaces.coder, name="tuned_coder"),
    "stats": latent_spaces.stats,
    "flow": generators.velocity_network,
    "language_model": language.language_model,
    "adapters": language.adapters,
    "text_dit": language.text_dit,
    "mixture": mixtures.mixture,
    "guide": functools.partial(generators.velocity_network, name="guide"),
    "mid_training": functools.partial(generators.flow_map, name="mid_training"),
    "flow_map": generators.flow_map,
    "lpips": critics.lpips,
    "lpips_alexnet": critics.lpips_alexnet,
    "inception": critics.inception,
    "linear_head": encoders.linear_head,
    "discriminator": critics.discriminator,
}

# The sections that say of what architecture a component is, where its own does not.
BUILT_AS = {"adapters": "language_model", "tuned_coder": "coder"}
FLOW_MAPS = ("mid_training", "flow_map")  # in the order of their training; they are built as what they learn from


def component(config: ConfigDict, name: str) -> Component:
    """The component `name` as the config describes it.

    Raises:
      ValueError: there is none of that name, or the config does not describe it.
    """
    if name not in CATALOGUE:
        raise ValueError(f"there is no component {name!r}; there are {list(CATALOGUE)}")
    return CATALOGUE[name](config)


def described(config: ConfigDict) -> tuple[str, ...]:
    """The components with a module whose architecture the config tells."""
    statistics = ("feature_stats", "stats")
    teacher = "mixture" if config.mixture.model else "text_dit" if language.speaks(config) else "flow"
    built_as = BUILT_AS | dict.fromkeys(FLOW_MAPS, teacher)
    sections = {name: config[built_as.get(name, name)] for name in CATALOGUE if name not in statistics}
    return tuple(name for name, section in sections.items() if section.get("model", True))


def trained_components(config: ConfigDict, stage: str) -> tuple[str, ...]:
    """The components that `stage` trains: those that its section lists as `trains`, or the one of its own name."""
    return tuple(config[stage].get("trains", (stage,)))


def trained_by(config: ConfigDict, component: str, before: str | None = None) -> str | None:
    """The last stage that trains `component`, of those before the stage `before` if it is given; None if none does."""
    stages = tuple(config.stages)
    if before is not None:
        stages = stages[: stages.index(before)]
    return next((stage for stage in reversed(stages) if component in trained_components(config, stage)), None)


def given_to(config: ConfigDict, stage: str) -> tuple[str, ...]:
    """The components that `stage` is the first to train, and of which the config gives weights: it goes on from them.

    Random ones are what it starts from anyway.
    """
    return tuple(
        name
        for name in trained_components(config, stage)
        if config[name].weights not in ("", RANDOM) and trained_by(config, name, before=stage) is None
    )
