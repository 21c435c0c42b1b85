"""Generation as one pure function, keys and labels in, images out, for pictures in training and sampling at scale."""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from rae_jax.flow import samplers
from rae_jax.flow.guidance import classifier_free_guidance
from rae_jax.flow.times import sampling_times
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.training import components

Params = Any
ODE_SAMPLERS = {"euler": samplers.euler, "heun": samplers.heun}


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
    """The random key of each sample `[B]`, fixed by (seed, sample index) alone, however samples are batched."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)


def generator(config: ConfigDict) -> Callable[[Params, dict[str, Params], jax.Array, jax.Array], jax.Array]:
    """`(flow parameters, {"stats", "decoder"}, keys [B], labels [B]) -> images [B, H, W, 3]`, not clamped.

    Raises:
      ValueError: unknown sampler.
    """
    model, autoencoder = components.velocity_model(config), components.autoencoder(config)
    sampling, shape = config.sampling, components.latent_shape(config)
    times = sampling_times(sampling.num_steps, shift=components.time_shift(config), grid=sampling.grid)
    if sampling.method not in (*ODE_SAMPLERS, "euler_maruyama"):
        raise ValueError(f"sampling.method={sampling.method!r} is not one of {[*ODE_SAMPLERS, 'euler_maruyama']}")

    def generate(flow: Params, frozen: dict[str, Params], keys: jax.Array, labels: jax.Array) -> jax.Array:
        def conditional(z: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
            return model.apply({"params": flow}, z, t, y)

        def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
            return conditional(z, t, labels)

        if sampling.guidance_scale != 1.0:
            velocity = classifier_free_guidance(
                conditional,
                labels,
                config.flow.num_classes,
                scale=sampling.guidance_scale,
                interval=tuple(sampling.guidance_interval),
            )
        noise_keys, path_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(noise_keys)
        if sampling.method in ODE_SAMPLERS:
            z = ODE_SAMPLERS[sampling.method](velocity, noise, times)
        else:
            z = samplers.euler_maruyama(velocity, noise, times, path_keys)
        statistics = LatentStatistics(**frozen["stats"])
        return autoencoder.apply({"params": {"decoder": frozen["decoder"]}}, z, statistics, method="decode")

    return generate
