"""Generation from prompts: the language model reads each once, and the DiT samples what its hidden states tell."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.generators import time_shift
from rae_jax.components.language import language_model, reader, text_dit
from rae_jax.components.latent_spaces import latent_space
from rae_jax.flow import samplers
from rae_jax.flow.guidance import classifier_free_guidance
from rae_jax.flow.times import sampling_times
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.models.text_to_image import TokenCondition

SAMPLERS = {"euler": samplers.euler, "heun": samplers.heun, "euler_as_coded": samplers.euler_as_coded}


def latent_sampler(config: ConfigDict) -> Callable[[Params, jax.Array, jax.Array], jax.Array]:
    """`(parameters of "text_dit", conditions [B, N, Z], keys [B]) -> normalised latents`, as `config.sampling` says.

    Raises:
      ValueError: unknown sampler or guidance.
    """
    dit, space, sampling = text_dit(config), latent_space(config), config.sampling
    if sampling.method not in SAMPLERS:
        raise ValueError(f"sampling.method={sampling.method!r} is not one of {list(SAMPLERS)}, which prompts can have")
    if sampling.guidance != "classifier_free":
        raise ValueError(f"sampling.guidance={sampling.guidance!r}; with prompts there is 'classifier_free' alone")
    times = sampling_times(
        sampling.num_steps, shift=time_shift(config), grid=sampling.grid, last_step=sampling.last_step
    )
    strength = dict(scale=sampling.guidance_scale, interval=tuple(sampling.guidance_interval))
    solve, guided = SAMPLERS[sampling.method], sampling.guidance_scale != 1.0

    def sample(params: Params, told: TokenCondition, keys: jax.Array) -> jax.Array:
        noise_keys, _ = jax.vmap(jax.random.split, out_axes=1)(keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, space.shape))(noise_keys)
        network = functools.partial(dit.apply, params)
        velocity = functools.partial(_told, network, told)
        if guided:
            null = told._replace(dropped=jnp.ones_like(told.dropped))
            velocity = classifier_free_guidance(network, told, null, **strength)
        return solve(velocity, noise, times)

    return sample


def _told(network: Callable[..., jax.Array], told: TokenCondition, z: jax.Array, t: jax.Array) -> jax.Array:
    return network(z, t, told)


def prompted_generator(config: ConfigDict) -> Callable[[Params, dict[str, Params], jax.Array, Any], jax.Array]:
    """Generation from a `PromptCondition`; what it takes is as of `generator.Generator`.

    The network is "text_dit"; beside it are "language_model", "adapters", "stats" and what decodes.
    """
    language, read, space, sample = language_model(config), reader(config), latent_space(config), latent_sampler(config)

    def generate(params: Params, frozen: dict[str, Params], keys: jax.Array, asked: Any) -> jax.Array:
        with language.precise():
            tokens = read.asked(frozen, asked["ids"], asked["length"])
        z = sample(params, TokenCondition(tokens, asked["dropped"]), keys)
        return space.decode(frozen, LatentStatistics(**frozen["stats"]).denormalise(z))

    return generate
