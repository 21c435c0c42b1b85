"""Generation from prompts: the language model reads each once, and the DiT samples what its hidden states tell."""

import functools
from typing import Any

import jax
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.conditions import embedding
from rae_jax.components.generators import time_shift
from rae_jax.components.language import text_dit
from rae_jax.flow import samplers
from rae_jax.flow.guidance import classifier_free_guidance
from rae_jax.flow.times import sampling_times
from rae_jax.sampling.generator import Generator, with_noise_and_decoder

SAMPLERS = {"euler": samplers.euler, "heun": samplers.heun, "euler_as_coded": samplers.euler_as_coded}


def prompted_generator(config: ConfigDict) -> Generator:
    """Generation from a `PromptCondition`, as `config.sampling` says.

    The network is "text_dit"; beside it are "language_model", "adapters", "stats" and what decodes.

    Raises:
      ValueError: unknown sampler or guidance.
    """
    (_, embed), dit, sampling = embedding(config), text_dit(config), config.sampling
    if sampling.method not in SAMPLERS:
        raise ValueError(f"sampling.method={sampling.method!r} is not one of {list(SAMPLERS)}, which prompts can have")
    if sampling.guidance != "classifier_free":
        raise ValueError(f"sampling.guidance={sampling.guidance!r}; with prompts there is 'classifier_free' alone")
    times = sampling_times(
        sampling.num_steps, shift=time_shift(config), grid=sampling.grid, last_step=sampling.last_step
    )
    strength = dict(scale=sampling.guidance_scale, interval=tuple(sampling.guidance_interval))
    solve, guided = SAMPLERS[sampling.method], sampling.guidance_scale != 1.0

    def to_latents(
        params: Params, frozen: dict[str, Params], noise: jax.Array, path_keys: jax.Array, asked: Any
    ) -> jax.Array:
        del path_keys  # the path is not random
        told = embed(frozen, asked)
        network = functools.partial(dit.apply, params)

        def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
            return network(z, t, told)

        if guided:
            velocity = classifier_free_guidance(network, told, told.null(), **strength)
        return solve(velocity, noise, times)

    return with_noise_and_decoder(config, to_latents)
