"""Velocities of a mixture of transformers: what is given is read once, only the latents go through it at every time.

The keys and values of texts and given images do not depend on the noised latents, which they never see. So a run with
this memory is the run of the whole pack (Bagel).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rae_jax.components.component import Component, Params
from rae_jax.data.packing import Markers
from rae_jax.flow.guidance import Interval, check_renormalisation, guide_twice
from rae_jax.flow.path import over
from rae_jax.flow.samplers import VelocityFunction
from rae_jax.models.mixture_of_transformers import Images, Texts, joined
from rae_jax.models.pack import Places, Run, placed


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


class Remembered(NamedTuple):
    """What a network has read, a row each: keys and values of all layers, where they stand, and what is to be made."""

    memory: Any
    context: Places
    wanted: Wanted


class Guidance(NamedTuple):
    """How two conditions guide, see `guidance.guide_twice`; inside the interval, without its lower end.

    Without a text scale above 1 nothing is guided.
    """

    text_scale: float = 1.0
    image_scale: float = 1.0
    interval: Interval = (0.0, 1.0)
    renormalisation: str = "global"
    least_norm: float = 0.0

    @property
    def by_text(self) -> bool:
        """Whether anything is guided."""
        return self.text_scale > 1


def rows_of(
    ids: jax.Array,
    length: jax.Array,
    *,
    grid: int,
    capacity: int,
    markers: Markers,
    source: jax.Array | None = None,
    semantic: jax.Array | None = None,
    shown: bool = True,
    text_first: bool = False,
) -> tuple[Given, Wanted]:
    """What is given and wanted in rows of one image to be made each, on a square grid.

    Args:
      ids: of the texts, `[B, T]`, markers included.
      length: `[B]`, how many of them there are; 0: there is no text.
      grid: the image's side in tokens.
      capacity: of the table of positions.
      source: latents `[B, N, C]` of given images; none are given by default.
      semantic: `[B, N, S]`, the same as semantic tokens, whose table of positions is of the grid's own size.
      shown: whether the given images are; without, nothing knows of them.
      text_first: whether they see the text, which else sees them.
    """
    batch, image = ids.shape[0], grid**2 + 2
    whole = jnp.full(batch, image)
    given = [values for values in (source, semantic) if values is not None]
    # What is not shown moves on what follows all the same, as what is dropped does in training.
    runs = [Run("full", image if shown else 0, whole) for _ in given]
    text, made = Run("causal", ids.shape[1], length), Run("noise", image, whole)
    *seen, noised = placed([text, *runs, made] if text_first else [*runs, text, made])
    text = seen.pop(0 if text_first else -1)
    seen, given = (seen, given) if shown else ([], [])

    def part(places: Places, begin: int, end: int, step: int = 1) -> Places:
        return Places(*(field[:, begin:end:step] for field in places))

    def position_of(capacity: int) -> jax.Array:
        position = (jnp.arange(grid)[:, None] * capacity + jnp.arange(grid)).reshape(1, -1)
        return jnp.broadcast_to(position, (batch, grid**2))

    position = position_of(capacity)
    around = jnp.broadcast_to(jnp.array([markers.image_start, markers.image_end]), (batch, 2))
    time = jnp.zeros((batch, grid**2))
    positions = [position] * (source is not None) + [position_of(grid)] * (semantic is not None)
    images = [
        Images(values, where, part(places, 1, image - 1), time)
        for values, where, places in zip(given, positions if shown else [], seen, strict=True)
    ]
    texts = Texts(
        jnp.concatenate([*[around] * len(given), ids], axis=1),
        joined([*(part(places, 0, image, image - 1) for places in seen), text]),
    )
    wanted = Wanted(Texts(around, part(noised, 0, image, image - 1)), position, part(noised, 1, image - 1))
    clean = images[0] if source is not None and shown else None
    return Given(texts, clean, images[-1] if semantic is not None and shown else None), wanted


def remember(network: Component, params: Params, given: Given, wanted: Wanted) -> Remembered:
    """Reads what is given."""
    arguments = (given.texts, None, given.clean, given.semantic)
    with network.precise():
        _, memory = network.module.apply({"params": params}, *arguments, mutable=["cache"])
    return Remembered(_rows_first(network, memory), given.places, wanted)


def velocity_after(
    network: Component,
    params: Params,
    read: Remembered,
    z: jax.Array,
    t: jax.Array,
    r: jax.Array | None = None,
) -> jax.Array:
    """The velocity of the wanted latents `[B, N, C]` at times `t: [B]`; of a flow map, the mean one over `[r, t]`."""
    memory, wanted = _rows_first(network, read.memory), read.wanted
    times = [None if time is None else jnp.broadcast_to(time[:, None], z.shape[:2]) for time in (t, r)]
    noised = Images(z, wanted.position, wanted.places, *times)
    with network.precise():
        v, _ = network.module.apply({"params": params, **memory}, wanted.markers, noised, context=read.context)
    return v


def _rows_first(network: Component, memory: Any) -> Any:
    """The memory with rows before layers, where layers are scanned; and back."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), memory) if network.module.scan else memory


def guided_velocity(
    full: VelocityFunction,
    without_text: VelocityFunction,
    without_image: VelocityFunction | None,
    guidance: Guidance,
) -> VelocityFunction:
    """The guided velocity function; the other two are not asked where all rows are outside the interval.

    Where no image is shown, `without_image` is None and there is no guidance by it.
    """
    low, high = guidance.interval
    if low > high:
        raise ValueError(f"guidance interval {guidance.interval} is empty; give (t_min, t_max) with t_min <= t_max")
    check_renormalisation(guidance.renormalisation)
    if not guidance.by_text:
        return full
    image_scale = 1.0 if without_image is None else guidance.image_scale

    def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
        v = full(z, t)

        def guided() -> jax.Array:
            return guide_twice(
                v,
                without_text(z, t),
                without_image(z, t) if image_scale > 1 else None,
                text_scale=guidance.text_scale,
                image_scale=image_scale,
                renormalisation=guidance.renormalisation,
                least_norm=guidance.least_norm,
            )

        inside = (t > low) & (t <= high)
        return jax.lax.cond(jnp.any(inside), lambda: jnp.where(over(inside, v), guided(), v), lambda: v)

    return velocity
