"""Generation with a mixture of transformers, from a text alone or from an image and an instruction."""

from typing import Any

import jax
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.conditions import embedding
from rae_jax.components.generators import time_shift
from rae_jax.components.mixtures import guidance_of, instructed, instructed_velocity
from rae_jax.flow.samplers import euler
from rae_jax.flow.times import sampling_times
from rae_jax.sampling.generator import Generator, with_noise_and_decoder


def instructed_generator(config: ConfigDict) -> Generator:
    """Generation from an `instruction_condition`, as `config.sampling` says: Euler steps, guidance by two conditions.

    Raises:
      ValueError: another sampler, or guidance that makes no sense.
    """
    sampling, network, guidance = config.sampling, instructed(config), guidance_of(config.sampling)
    _, embed = embedding(config)
    if sampling.method != "euler":
        raise ValueError(f"sampling.method={sampling.method!r}; a mixture of transformers is sampled by 'euler'")
    times = sampling_times(
        sampling.num_steps, shift=time_shift(config), grid=sampling.grid, last_step=sampling.last_step
    )

    def to_latents(
        params: Params, frozen: dict[str, Params], noise: jax.Array, path_keys: jax.Array, asked: Any
    ) -> jax.Array:
        del path_keys  # the path is not random
        told = embed(frozen, asked)
        return euler(instructed_velocity(network, params, told, told.null(), guidance), noise, times)

    return with_noise_and_decoder(config, to_latents)
