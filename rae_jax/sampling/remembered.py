"""Sampling with a mixture of transformers: what is given is read once, only the latents go through it at every time.

The keys and values of texts and given images do not depend on the noised latents, which they never see. So a run with
this memory is the run of the whole pack (Bagel).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rae_jax.components.component import Component, Params
from rae_jax.flow.guidance import Interval, guide_twice
from rae_jax.flow.samplers import VelocityFunction
from rae_jax.models.mixture_of_transformers import Images, Texts, joined
from rae_jax.models.pack import Places


class Given(NamedTuple):
    """What a context is of: texts with all markers, latents of given images, semantic tokens."""

    texts: Texts
    clean: Images | None = None
    semantic: Images | None = None

    @property
    def places(self) -> Places:
        """Of all its tokens, in the order in which they are remembered."""
        semantic = [self.semantic.places] if self.semantic is not None else []
        clean = [self.clean.places] if self.clean is not None else []
        return joined([self.texts.places, *semantic, *clean])


class Wanted(NamedTuple):
    """The images to be made: their markers, and where their latents are."""

    markers: Texts
    position: jax.Array
    places: Places


class Guidance(NamedTuple):
    """How two conditions guide, see `guidance.guide_twice`; inside the interval, without its lower end.

    Without a text scale above 1 nothing is guided.
    """

    text_scale: float = 1.0
    image_scale: float = 1.0
    interval: Interval = (0.0, 1.0)
    renormalisation: str = "global"
    least_norm: float = 0.0


def remembering(network: Component, params: Params, given: Given, wanted: Wanted) -> VelocityFunction:
    """The velocity function of the wanted latents `[B, N, C]` after what is given, which is read now."""
    with network.precise():
        _, memory = network.module.apply(
            {"params": params}, given.texts, None, given.clean, given.semantic, mutable=["cache"]
        )
    context = given.places

    def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
        noised = Images(z, wanted.position, wanted.places, jnp.broadcast_to(t[:, None], z.shape[:2]))
        with network.precise():
            v, _ = network.module.apply({"params": params, **memory}, wanted.markers, noised, context=context)
        return v

    return velocity


def guided_velocity(
    full: VelocityFunction,
    without_text: VelocityFunction,
    without_image: VelocityFunction | None,
    guidance: Guidance,
) -> VelocityFunction:
    """The guided velocity function; the other two are not asked outside the interval."""
    low, high = guidance.interval
    if low > high:
        raise ValueError(f"guidance interval {guidance.interval} is empty; give (t_min, t_max) with t_min <= t_max")
    if guidance.text_scale <= 1:
        return full

    def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
        v = full(z, t)

        def guided() -> jax.Array:
            return guide_twice(
                v,
                without_text(z, t),
                without_image(z, t) if guidance.image_scale > 1 else None,
                text_scale=guidance.text_scale,
                image_scale=guidance.image_scale,
                renormalisation=guidance.renormalisation,
                least_norm=guidance.least_norm,
            )

        return jax.lax.cond((t[0] > low) & (t[0] <= high), guided, lambda: v)

    return velocity
