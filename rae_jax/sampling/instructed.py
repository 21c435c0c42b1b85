"""Generation with a mixture of transformers, from a text alone or from an image and an instruction."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.components.generators import time_shift
from rae_jax.components.latent_spaces import by_name, latent_space, stats
from rae_jax.components.mixtures import given_arguments, mixture
from rae_jax.flow.samplers import euler
from rae_jax.flow.times import sampling_times
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.sampling.generator import Generator, with_noise_and_decoder
from rae_jax.sampling.remembered import Guidance, guided_velocity, remembering, rows_of


def parts_beside(config: ConfigDict) -> dict[str, Component]:
    """The components that generation needs beside the network, by name."""
    space = latent_space(config)
    encoding = space.encoding if config.mixture.task == "edit" else {}
    seeing = by_name(encoder(config)) if config.mixture.semantic else {}
    return {"stats": stats(config), **space.decoding, **encoding, **seeing}


def guidance_of(config: ConfigDict) -> Guidance:
    """How samples are guided."""
    sampling = config.sampling
    return Guidance(
        sampling.guidance_scale,
        sampling.image_guidance_scale,
        tuple(sampling.guidance_interval),
        sampling.renormalisation,
        sampling.least_norm,
    )


def instructed_generator(config: ConfigDict) -> Generator:
    """Generation from an `instruction_condition`, as `config.sampling` says: Euler steps, guidance by two conditions.

    Raises:
      ValueError: another sampler.
    """
    sampling, space, network, fixed = config.sampling, latent_space(config), mixture(config), given_arguments(config)
    if sampling.method != "euler":
        raise ValueError(f"sampling.method={sampling.method!r}; a mixture of transformers is sampled by 'euler'")
    times = sampling_times(
        sampling.num_steps, shift=time_shift(config), grid=sampling.grid, last_step=sampling.last_step
    )
    guidance, semantic = guidance_of(config), config.mixture.semantic
    see = tokens_of(config) if semantic else None
    guided_velocity(lambda z, t: z, lambda z, t: z, lambda z, t: z, guidance)  # raises for what makes no sense

    def to_latents(
        params: Params, frozen: dict[str, Params], noise: jax.Array, path_keys: jax.Array, asked: Any
    ) -> jax.Array:
        del path_keys  # the path is not random
        statistics = LatentStatistics(**frozen["stats"])
        given = {}
        if "source" in asked:
            images = asked["source"].astype(jnp.float32) / 255.0
            given["source"] = statistics.normalise(space.encode(frozen, images))
            if semantic:
                given["semantic"] = see(frozen["encoder"], images)
        nothing = jnp.zeros_like(asked["length"])

        def after(length: jax.Array, shown: bool) -> Any:
            rows = rows_of(asked["ids"], length, shown=shown, **given, **fixed)
            return remembering(network, params, *rows)

        full, no_text = after(asked["length"], True), after(nothing, True)
        no_image = after(asked["length"], False) if given else None
        velocity = guided_velocity(full, no_text, no_image, guidance)
        return euler(velocity, noise, times)

    return with_noise_and_decoder(config, to_latents)
