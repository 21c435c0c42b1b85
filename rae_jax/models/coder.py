"""The rectified flow auto coder's states and its velocity field, which decodes, and run backwards encodes.

Fang et al., "RAC: Rectified Flow Auto Coder" (2026). A state `[B, H, W, C_s]` has the image's size. The last one is the
image in [-1, 1] with its further channels at 0.5, the first one the latent enlarged; `flow/both_ways.py` walks between
them. The paper leaves the field's details open: here it is the decoder of Stable Diffusion's autoencoder, narrower, on
the state with its pixels folded into channels.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat

from rae_jax.flow import both_ways
from rae_jax.flow.samplers import VelocityFunction
from rae_jax.models.kl_vae import ConvDecoder, to_map
from rae_jax.models.layers import Dense, Start

PADDING = 0.5  # the value of channels that carry nothing

# Arguments of `RectifiedCoder` by the share of the parameters of Stable Diffusion's decoder (49.5 million).
SCALES = {
    "0.1x": {"channels": (40, 80, 160, 160), "num_groups": 8},
    "0.2x": {"channels": (56, 112, 224, 224), "num_groups": 8},
    "0.3x": {"channels": (72, 144, 280, 280), "num_groups": 8},
    "1x": {"channels": (128, 256, 512, 512), "num_groups": 32},
}


def pad(x: jax.Array, channels: int) -> jax.Array:
    """`[B, H, W, C] -> [B, H, W, channels]`, the new channels at 0.5.

    Raises:
      ValueError: there are more than `channels` already.
    """
    if x.shape[-1] > channels:
        raise ValueError(f"{x.shape[-1]} channels do not fit into a state of {channels}")
    return jnp.pad(x, ((0, 0),) * 3 + ((0, channels - x.shape[-1]),), constant_values=PADDING)


def image_state(images: jax.Array, state_channels: int) -> jax.Array:
    """The state `s*: [B, H, W, C_s]` of images `[B, H, W, 3]` in [0, 1]."""
    return pad(images * 2.0 - 1.0, state_channels)


def image_of(state: jax.Array) -> jax.Array:
    """The images `[..., H, W, 3]` that states `[..., H, W, C_s]` show, in the scale of [0, 1] but not clamped to it."""
    return state[..., :3] / 2.0 + 0.5


def spread(latent_channels: int, state_channels: int) -> int:
    """The side p, a power of two, of the square of pixels over which the channels of one latent position are spread."""
    p = 1
    while latent_channels > state_channels * p * p:
        p *= 2
    return p


def latent_state(z: jax.Array, scale: int, state_channels: int) -> jax.Array:
    """The state `s_0: [B, h scale, w scale, C_s]` of the latent `z: [B, h, w, C]`: padded, then enlarged.

    Every position is repeated over `scale x scale` pixels. A latent with more channels than the state has lies with its
    further channels side by side: on squares of p x p pixels before they are repeated.

    Raises:
      ValueError: the latent does not fit into the state.
    """
    p = spread(z.shape[-1], state_channels)
    if scale % p:
        raise ValueError(
            f"a latent of {z.shape[-1]} channels, {scale} pixels a position, does not fit into {state_channels} state "
            f"channels; use at least {math.ceil(z.shape[-1] / scale**2)}"
        )
    padded = pad(z, state_channels * p * p)
    side_by_side = rearrange(padded, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)
    return repeat(side_by_side, "b h w c -> b (h i) (w j) c", i=scale // p, j=scale // p)


def pooled_latent(state: jax.Array, scale: int, latent_channels: int) -> jax.Array:
    """The latent `[B, h, w, C]` of a state `[B, h scale, w scale, C_s]` by average pooling; inverts `latent_state`."""
    p = spread(latent_channels, state.shape[-1])
    pooled = reduce(state, "b (h i) (w j) c -> b h w c", "mean", i=scale // p, j=scale // p)
    return rearrange(pooled, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)[..., :latent_channels]


def fold(state: jax.Array, scale: int) -> jax.Array:
    """`[B, h scale, w scale, C] -> [B, h, w, scale^2 C]`: squares of pixels become channels, nothing is lost."""
    return rearrange(state, "b (h i) (w j) c -> b h w (i j c)", i=scale, j=scale)


def unfold(x: jax.Array, scale: int) -> jax.Array:
    """The inverse of `fold`."""
    return rearrange(x, "b h w (i j c) -> b (h i) (w j) c", i=scale, j=scale)


class RectifiedCoder(nn.Module):
    """The velocity field between a latent of `latent_channels` channels and its image, and the projector to latents.

    `model.apply({"params": p}, s, t, method="velocity")`, with states `s: [B, H, W, C_s]` and times `t: [B]`, 0 at the
    latent and 1 at the image -> `[B, H, W, C_s]` float32.

    The field sees the state at `patch_size 2^(levels - 1)` pixels a position, folded, with a channel that holds t and
    with `positions` two more that hold row and column from -1 to 1; then it is a `ConvDecoder`, whose last layer makes
    squares of `patch_size` pixels.

    Attributes:
      latent_channels: C.
      scale: pixels along one position of the latent.
      state_channels: C_s.
      learned_projector: whether the latent is a learned linear map of the pixels of a position, average pooling at
        first, rather than average pooling.
      patch_size: 1 in the paper's sizes; a larger one keeps the field away from the full resolution, which is costly.
      positions: whether the field is told where a position lies.
      channels, blocks_per_level, middle_attention, num_groups, dtype: of the field, as in `ConvDecoder`; `SCALES` has
        the paper's.
    """

    latent_channels: int
    scale: int
    channels: tuple[int, ...]
    state_channels: int = 4
    learned_projector: bool = True
    patch_size: int = 1
    positions: bool = False
    blocks_per_level: int = 2
    middle_attention: bool = True
    num_groups: int = 32
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.field = ConvDecoder(
            channels=self.channels,
            out_channels=self.state_channels * self.patch_size**2,
            blocks_per_level=self.blocks_per_level,
            middle_attention=self.middle_attention,
            num_groups=self.num_groups,
            dtype=self.dtype,
        )
        if self.learned_projector:
            self.projector = Dense(
                self.latent_channels, ("patch", None), start=Start(self._average_pooling), dtype=jnp.float32, name=None
            )

    def velocity(self, state: jax.Array, t: jax.Array) -> jax.Array:
        """The velocity `[B, H, W, C_s]` at states of the same shape and times `[B]`.

        Raises:
          ValueError: the state cannot be folded.
        """
        scale = self.patch_size * 2 ** (len(self.channels) - 1)
        if state.shape[1] % scale or state.shape[2] % scale or state.shape[3] != self.state_channels:
            raise ValueError(
                f"states of shape {state.shape}; the field takes {self.state_channels} channels and sides that are "
                f"multiples of {scale}"
            )
        x = fold(state, scale)
        batch, h, w, _ = x.shape
        seen = [x, jnp.broadcast_to(t.reshape(-1, 1, 1, 1).astype(x.dtype), (batch, h, w, 1))]
        if self.positions:
            rows, columns = jnp.meshgrid(jnp.linspace(-1, 1, h), jnp.linspace(-1, 1, w), indexing="ij")
            seen.append(jnp.broadcast_to(jnp.stack([rows, columns], axis=-1), (batch, h, w, 2)))
        return unfold(self.field(jnp.concatenate(seen, axis=-1)), self.patch_size)

    def project(self, state: jax.Array) -> jax.Array:
        """The latent `[B, h, w, C]` of an encoded state `[B, H, W, C_s]`."""
        if not self.learned_projector:
            return pooled_latent(state, self.scale, self.latent_channels)
        return self.projector(fold(state, self.scale))

    def latent_state(self, z: jax.Array) -> jax.Array:
        """The state s_0 of latents `[B, h, w, C]`."""
        return latent_state(z, self.scale, self.state_channels)

    def image_state(self, images: jax.Array) -> jax.Array:
        """The state s* of images `[B, H, W, 3]` in [0, 1]."""
        return image_state(images, self.state_channels)

    def __call__(self, state: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Velocity and projected latent; uses every parameter, for initialisation."""
        return self.velocity(state, t), self.project(state)

    def _average_pooling(self, key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        """The kernel `[scale^2 C_s, C]` that does what `pooled_latent` does."""
        del key
        unit = jnp.eye(shape[0], dtype=dtype).reshape(shape[0], self.scale, self.scale, self.state_channels)
        return pooled_latent(unit, self.scale, self.latent_channels).reshape(shape)


def velocity_function(model: RectifiedCoder, params: Any) -> VelocityFunction:
    """The field with these parameters, for `flow/both_ways.py`."""
    return lambda state, t: model.apply({"params": params}, state, t, method="velocity")


def decode(model: RectifiedCoder, params: Any, z: jax.Array, num_steps: int) -> jax.Array:
    """Images `[B, H, W, 3]`, in the scale of [0, 1] but not clamped, of latents `[B, N, C]`, in equal steps."""
    first = model.latent_state(to_map(z))
    times = both_ways.uniform_grid(num_steps)
    return image_of(both_ways.decode(velocity_function(model, params), first, times))


def encode(model: RectifiedCoder, params: Any, images: jax.Array, num_steps: int, iterations: int = 1) -> jax.Array:
    """Latents `[B, N, C]` of images `[B, H, W, 3]` in [0, 1]: the flow reversed, in equal steps, and projected."""
    velocity, times = velocity_function(model, params), both_ways.uniform_grid(num_steps)
    state = both_ways.encode(velocity, model.image_state(images), times, iterations=iterations)
    return rearrange(model.apply({"params": params}, state, method="project"), "b h w c -> b (h w) c")
