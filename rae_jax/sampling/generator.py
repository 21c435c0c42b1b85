"""Generation as one pure function, keys and labels in, images out, for pictures in training and sampling at scale."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components import catalogue as components
from rae_jax.flow import flow_map, samplers
from rae_jax.flow.guidance import autoguidance, classifier_free_guidance
from rae_jax.flow.times import sampling_times
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.training.state import TrainState

Params = Any
ODE_SAMPLERS = {"euler": samplers.euler, "heun": samplers.heun}
# (network's parameters, those of "stats" and of what decodes and guides, keys [B], labels [B])
# -> images [B, H, W, 3], not clamped
Generator = Callable[[Params, dict[str, Params], jax.Array, jax.Array], jax.Array]


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
    """The random key of each sample `[B]`, fixed by (seed, sample index) alone, however samples are batched."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)


def guiding_component(config: ConfigDict) -> str | None:
    """The component beside the sampled one whose weights guidance needs, if it needs any.

    Raises:
      ValueError: unknown guidance.
    """
    sampling = config.sampling
    if sampling.guidance not in ("classifier_free", "autoguidance"):
        raise ValueError(f"sampling.guidance={sampling.guidance!r} is not 'classifier_free' or 'autoguidance'")
    return "guidance" if sampling.guidance == "autoguidance" and sampling.guidance_scale != 1.0 else None


def generator(config: ConfigDict, network: str = "flow", *, guide: str | None = None) -> Generator:
    """Generation with the velocity network of the component `network`, as `config.sampling` says.

    Args:
      guide: the component whose velocity network gives AutoGuidance, its parameters in the generator's second argument.
        Without it only classifier-free guidance, which the network gives itself, is heeded.

    Raises:
      ValueError: unknown sampler or guidance, or an empty guidance interval.
    """
    model, sampling = components.velocity_model(config, network), config.sampling
    weak_model = components.velocity_model(config, guide) if guide else None
    classifier_free = sampling.guidance == "classifier_free" and sampling.guidance_scale != 1.0
    strength = dict(scale=sampling.guidance_scale, interval=tuple(sampling.guidance_interval))
    times = sampling_times(sampling.num_steps, shift=components.time_shift(config), grid=sampling.grid)
    if sampling.method not in (*ODE_SAMPLERS, "euler_maruyama"):
        raise ValueError(f"sampling.method={sampling.method!r} is not one of {[*ODE_SAMPLERS, 'euler_maruyama']}")

    def to_latents(
        flow: Params, frozen: dict[str, Params], noise: jax.Array, path_keys: jax.Array, labels: jax.Array
    ) -> jax.Array:
        def conditional(z: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
            return model.apply({"params": flow}, z, t, y)

        def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
            return conditional(z, t, labels)

        def weak(z: jax.Array, t: jax.Array) -> jax.Array:
            return weak_model.apply({"params": frozen[guide]}, z, t, labels)

        if guide:
            velocity = autoguidance(velocity, weak, **strength)
        elif classifier_free:
            velocity = classifier_free_guidance(conditional, labels, config.flow.num_classes, **strength)
        if sampling.method in ODE_SAMPLERS:
            return ODE_SAMPLERS[sampling.method](velocity, noise, times)
        return samplers.euler_maruyama(velocity, noise, times, path_keys)

    return _with_noise_and_decoder(config, to_latents)


def flow_map_generator(config: ConfigDict, times: Sequence[float]) -> Generator:
    """Generation with a flow map that jumps between neighbours of `times`, from the noise that `generator` would use.

    Raises:
      ValueError: the times do not fall from 1 to 0.
    """
    model, path = components.flow_map_model(config), flow_map.jump_times(times)

    def to_latents(
        params: Params, frozen: dict[str, Params], noise: jax.Array, path_keys: jax.Array, labels: jax.Array
    ) -> jax.Array:
        del frozen, path_keys  # nothing guides, and the path is not random

        def u(z: jax.Array, r: jax.Array, t: jax.Array) -> jax.Array:
            return model.apply({"params": params}, z, t, labels, r)

        return flow_map.sample(u, noise, path)

    return _with_noise_and_decoder(config, to_latents)


def few_step_names(config: ConfigDict) -> dict[str, tuple[float, ...]]:
    """The times over which a flow map is sampled, by the ending of the samples' name: `_1step`, `_2step`, ..."""
    return {f"_{len(times) - 1}step": tuple(times) for times in config.sampling.flow_map_times}


def _with_noise_and_decoder(config: ConfigDict, to_latents: Callable[..., jax.Array]) -> Generator:
    space = components.latent_space(config)

    def generate(params: Params, frozen: dict[str, Params], keys: jax.Array, labels: jax.Array) -> jax.Array:
        noise_keys, path_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, space.shape))(noise_keys)
        z = to_latents(params, frozen, noise, path_keys, labels)
        return space.decode(frozen, LatentStatistics(**frozen["stats"]).denormalise(z))

    return generate


def class_samples(
    config: ConfigDict, generate: Generator
) -> Callable[[TrainState, dict[str, jax.Array]], dict[str, jax.Array]]:
    """A stage's `pictures`: a few samples of each of the first classes, or of none, always from the same noise."""
    unconditional = config.sampling.labels == "unconditional"

    def pictures(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        del batch
        classes = config.flow.num_classes
        labels = jnp.full(32, classes) if unconditional else jnp.repeat(jnp.arange(min(classes, 10)), 8)
        keys = sample_keys(config.seed, jnp.arange(labels.size))
        samples = {"samples": generate(state.ema_params, state.frozen, keys, labels)}
        return samples if unconditional else samples | {"label": labels}

    return pictures
