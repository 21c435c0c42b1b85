"""Generation as one pure function, keys and conditions in, images out: for pictures in training, and at scale."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params
from rae_jax.components.conditions import Condition, condition, embedding
from rae_jax.components.generators import VelocityNetwork, time_shift, velocity_network
from rae_jax.components.generators import flow_map as flow_map_network
from rae_jax.components.latent_spaces import latent_space, stats
from rae_jax.flow import flow_map, samplers
from rae_jax.flow.guidance import autoguidance, classifier_free_guidance, internal_guidance
from rae_jax.flow.times import sampling_times
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.training.state import TrainState

ODE_SAMPLERS = {"euler": samplers.euler, "heun": samplers.heun, "dopri5": samplers.dopri5}
GUIDANCES = ("classifier_free", "autoguidance")
# (network's parameters, those of "stats" and of what decodes and guides, keys [B], condition [B, ...])
# -> images [B, H, W, 3], not clamped
Generator = Callable[[Params, dict[str, Params], jax.Array, Condition], jax.Array]


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
    """The random key of each sample `[B]`, fixed by (seed, sample index) alone, however samples are batched."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)


def parts_beside(config: ConfigDict) -> dict[str, Component]:
    """The components that every generator needs beside its network, by name."""
    return {"stats": stats(config), **latent_space(config).decoding, **embedding(config)[0]}


def guiding_component(config: ConfigDict) -> str | None:
    """The component beside the sampled one whose weights guidance needs, if it needs any.

    Raises:
      ValueError: unknown guidance.
    """
    sampling = config.sampling
    if sampling.guidance not in GUIDANCES:
        raise ValueError(f"sampling.guidance={sampling.guidance!r} is not one of {list(GUIDANCES)}")
    return "guide" if sampling.guidance == "autoguidance" and sampling.guidance_scale != 1.0 else None


def guides_itself(config: ConfigDict, network: VelocityNetwork) -> bool:
    """Whether samples of `network` are guided by its own early output.

    Raises:
      ValueError: they are to be, and it has none.
    """
    sampling = config.sampling
    asked = sampling.internal_guidance_scale != 1.0 or sampling.internal_guidance_null_scale not in (0.0, 1.0)
    if asked and not network.has_base:
        raise ValueError(
            f"sampling.internal_guidance_scale={sampling.internal_guidance_scale}, but {network.name}.model has no "
            "early output to be guided by; it is one of a 'dit_in_context' with base_depth above 0"
        )
    return asked


def generator(config: ConfigDict, network: str = "flow", *, guide: str | None = None) -> Generator:
    """Generation with the velocity network of the component `network`, as `config.sampling` says.

    Internal guidance, of a network that has an early output, goes first: classifier-free guidance or AutoGuidance sees
    a velocity that it has guided.

    Args:
      guide: the component whose velocity network gives AutoGuidance, its parameters in the generator's second argument.
        Without it only classifier-free guidance, which the network gives itself, is heeded.

    Raises:
      ValueError: unknown sampler or guidance, an empty guidance interval, or internal guidance of a network without an
        early output.
    """
    strong, sampling, told = velocity_network(config, network), config.sampling, condition(config)
    weak, (_, embed) = velocity_network(config, guide) if guide else None, embedding(config)
    classifier_free = sampling.guidance == "classifier_free" and sampling.guidance_scale != 1.0
    strength = dict(scale=sampling.guidance_scale, interval=tuple(sampling.guidance_interval))
    own_scales = (sampling.internal_guidance_scale, sampling.internal_guidance_null_scale)
    own_scales = (own_scales[0], own_scales[1] or own_scales[0])
    own_interval, internal = tuple(sampling.internal_guidance_interval), guides_itself(config, strong)
    times = sampling_times(
        sampling.num_steps, shift=time_shift(config), grid=sampling.grid, last_step=sampling.last_step
    )
    if sampling.diffusion not in samplers.DIFFUSIONS:
        raise ValueError(f"sampling.diffusion={sampling.diffusion!r} is not one of {list(samplers.DIFFUSIONS)}")
    form, norm = samplers.DIFFUSIONS[sampling.diffusion], sampling.diffusion_norm
    method = sampling.method
    if method not in (*ODE_SAMPLERS, "euler_maruyama"):
        raise ValueError(f"sampling.method={method!r} is not one of {[*ODE_SAMPLERS, 'euler_maruyama']}")
    last = sampling.last_step_form
    if last not in samplers.LAST_STEPS:
        raise ValueError(f"sampling.last_step_form={last!r} is not one of {list(samplers.LAST_STEPS)}")
    tolerances = dict(rtol=sampling.rtol, atol=sampling.atol) if method == "dopri5" else {}

    def to_latents(
        params: Params, frozen: dict[str, Params], noise: jax.Array, path_keys: jax.Array, asked: Condition
    ) -> jax.Array:
        def conditional(z: jax.Array, t: jax.Array, asked: Condition) -> jax.Array:
            return strong.apply(params, z, t, asked)

        def outputs(z: jax.Array, t: jax.Array, asked: Condition) -> tuple[jax.Array, jax.Array]:
            return strong.outputs(params, z, t, asked)[:2]

        asked, null = embed(frozen, asked), embed(frozen, told.null(asked))
        if internal:
            conditional = internal_guidance(outputs, interval=own_interval)
            asked, null = ((c, jnp.full(noise.shape[0], s)) for c, s in zip((asked, null), own_scales, strict=True))

        def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
            return conditional(z, t, asked)

        def weak_velocity(z: jax.Array, t: jax.Array) -> jax.Array:
            return weak.apply(frozen[guide], z, t, asked[0] if internal else asked)

        if guide:
            velocity = autoguidance(velocity, weak_velocity, **strength)
        elif classifier_free:
            velocity = classifier_free_guidance(conditional, asked, null, **strength)
        if method in ODE_SAMPLERS:
            return ODE_SAMPLERS[method](velocity, noise, times, **tolerances)
        return samplers.euler_maruyama(velocity, noise, times, path_keys, diffusion=lambda t: norm * form(t), last=last)

    return with_noise_and_decoder(config, to_latents)


def flow_map_generator(config: ConfigDict, times: Sequence[float]) -> Generator:
    """Generation with a flow map that jumps between neighbours of `times`, from the noise that `generator` would use.

    A guided flow map is told `sampling.guidance_scale` and `guidance_interval`; another is not guided.

    Raises:
      ValueError: the times do not fall from 1 to 0, or a guided flow map does not learn that scale.
    """
    network, path, sampling = flow_map_network(config), flow_map.jump_times(times), config.sampling
    _, embed = embedding(config)
    guided, largest = config.flow_map.guided, config.flow_map.largest_guidance_scale
    guidance = np.array([sampling.guidance_scale, *sampling.guidance_interval], np.float32)
    if guided and not 1 <= sampling.guidance_scale <= largest:
        raise ValueError(
            f"sampling.guidance_scale={sampling.guidance_scale}, but the flow map learns scales from 1 to "
            f"flow_map.largest_guidance_scale={largest}"
        )

    def to_latents(
        params: Params, frozen: dict[str, Params], noise: jax.Array, path_keys: jax.Array, asked: Condition
    ) -> jax.Array:
        del path_keys  # the path is not random
        told = network.read(params, embed(frozen, asked))
        guiding = [jnp.broadcast_to(guidance, (noise.shape[0], 3))] * guided

        def u(z: jax.Array, r: jax.Array, t: jax.Array) -> jax.Array:
            return network.apply(params, z, t, told, r, *guiding)

        return flow_map.sample(u, noise, path)

    return with_noise_and_decoder(config, to_latents)


def few_step_names(config: ConfigDict) -> dict[str, tuple[float, ...]]:
    """The times over which a flow map is sampled, by the ending of the samples' name: `_1step`, `_2step`, ..."""
    return {f"_{len(times) - 1}step": tuple(times) for times in config.sampling.flow_map_times}


def with_noise_and_decoder(config: ConfigDict, to_latents: Callable[..., jax.Array]) -> Generator:
    """The generator that draws the noise and decodes what `to_latents` makes of it.

    Args:
      to_latents: `(params, frozen, noise [B, N, C], keys of the path [B], condition) -> normalised latents`.
    """
    space = latent_space(config)

    def generate(params: Params, frozen: dict[str, Params], keys: jax.Array, asked: Condition) -> jax.Array:
        noise_keys, path_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, space.shape))(noise_keys)
        z = to_latents(params, frozen, noise, path_keys, asked)
        return space.decode(frozen, LatentStatistics(**frozen["stats"]).denormalise(z))

    return generate


def shown_samples(config: ConfigDict, generate: Generator) -> dict[str, Any]:
    """A stage's `pictures` and their `groups`: a few samples of the conditions shown, always from the same noise."""
    told, seed = condition(config), config.seed
    asked = told.shown()
    rows = jax.tree.leaves(asked)[0].shape[0]

    def pictures(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        del batch
        keys = sample_keys(seed, jnp.arange(rows))
        return {"samples": generate(state.ema_params, state.frozen, keys, jax.tree.map(jnp.asarray, asked))}

    return {"pictures": pictures, "groups": told.groups(asked)}
