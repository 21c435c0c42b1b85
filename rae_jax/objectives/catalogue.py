"""One file an objective: each gives a loss and one train_step, and `make(config, stage)` builds it from its section."""

from ml_collections import ConfigDict

from rae_jax.components.catalogue import component, given_to, trained_components
from rae_jax.objectives import (
    aligned_velocity,
    bridge,
    cmt,
    end_to_end_tuning,
    joint_coder,
    kl_autoencoding,
    latent_statistics,
    masked_autoencoding,
    meanflow,
    mixture_of_transformers,
    pivot,
    reconstruction,
    rectified_coder,
    text_to_image,
    velocity,
)
from rae_jax.objectives.objective import Objective

OBJECTIVES = {
    "bridge": bridge.make,
    "aligned_velocity": aligned_velocity.make,
    "consistency_mid_training": cmt.make,
    "end_to_end_tuning": end_to_end_tuning.make,
    "joint_coder": joint_coder.make,
    "kl_autoencoding": kl_autoencoding.make,
    "latent_statistics": latent_statistics.make,
    "masked_autoencoding": masked_autoencoding.make,
    "meanflow": meanflow.make,
    "mixture_of_transformers": mixture_of_transformers.make,
    "pivot": pivot.make,
    "reconstruction": reconstruction.make,
    "rectified_coder": rectified_coder.make,
    "text_to_image": text_to_image.make,
    "velocity": velocity.make,
}


def objective_of(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`, which goes on from the weights that the config gives for what it trains.

    Raises:
      ValueError: a value of its section means nothing, or weights are given for what the stage measures.
    """
    objective = OBJECTIVES[config[stage].objective](config, stage)
    given = given_to(config, stage)
    if not given:
        return objective
    if objective.finish:
        raise ValueError(
            f"{given[0]}.weights={config[given[0]].weights!r}, which the stage {stage!r} measures itself; take it out "
            f"of stages, or set {given[0]}.weights=''"
        )
    return objective.going_on_from({name: component(config, name) for name in given}, trained_components(config, stage))
