"""What tells a diffusion transformer where and when it is: position tables, and embeddings of time and class label."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rae_jax.models.layers import PYTORCH, ZEROS, Dense, Initializer, Start, named


def sincos_table(grid_size: int, width: int, *, spacing: float = 1.0, class_token: bool = False) -> np.ndarray:
    """The fixed 2-D sine-cosine positions `[grid_size^2, width]`, float32, of a row-major square grid.

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines, of the
    position times `10000^(-i / (width / 4))`. Neighbours are `spacing` apart. With `class_token` a row of zeros goes
    first, as in Vision Transformers.

    Raises:
      ValueError: `width` is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width divisible by 4, got {width}")
    frequencies = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))
    row, column = np.divmod(np.arange(grid_size**2), grid_size)
    angles = [position[:, None] * spacing * frequencies for position in (column, row)]
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    return np.pad(table, ((int(class_token), 0), (0, 0))).astype(np.float32)


def rotary_table(grid_size: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, each `[grid_size^2, head_dim / 2]`, float32, for `attention.attend` on a row-major grid.

    The first half of the angles turns with the row, the second with the column, at frequencies
    `10000^(-i / (head_dim / 4))`; positions are integers.

    Raises:
      ValueError: `head_dim` is not divisible by 4.
    """
    if head_dim % 4:
        raise ValueError(f"2-D rotary positions need a head width divisible by 4, got {head_dim}")
    # Frequencies and angles are rounded to float32, as in the tables inside published checkpoints, which these equal to
    # the last bit or the one before; at large positions the roundings are what a trained model has seen.
    half = head_dim // 2
    exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
    frequencies = 1 / (10000 ** exponents.astype(np.float64)).astype(np.float32)
    row, column = np.divmod(np.arange(grid_size**2, dtype=np.float32), np.float32(grid_size))
    angle = np.concatenate([position[:, None] * frequencies for position in (row, column)], axis=1).astype(np.float64)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


class SinCosPositions(nn.Module):
    """`sincos_table` of a square grid `[side^2, width]`; with `trained`, the parameter `table` that starts there."""

    side: int
    width: int
    class_token: bool = False
    spacing: float = 1.0
    trained: bool = False

    @nn.compact
    def __call__(self) -> jax.Array:
        table = jnp.asarray(sincos_table(self.side, self.width, spacing=self.spacing, class_token=self.class_token))
        return self.param("table", named(lambda key: table, "tokens", "embed")) if self.trained else table


TIME_START = Start(nn.initializers.normal(0.02))
NORMAL = nn.initializers.normal(1.0)


def torch_normal(seed: int, count: int) -> np.ndarray:
    """The first `count` standard normal numbers of PyTorch's CPU generator, `[count]` float32, but for their last bits.

    `count` is a multiple of 16, from 16 on: so many are drawn by Box and Muller's method in groups of 16.
    """
    bits = np.random.RandomState(seed).randint(0, 2**32, count, dtype=np.uint32)
    radius, turn = np.moveaxis(((bits & 0xFFFFFF) / 2**24).reshape(-1, 2, 8), 1, 0)
    radius, angle = np.sqrt(-2 * np.log(1 - radius)), 2 * math.pi * turn
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel().astype(np.float32)


class TimeEmbedding(nn.Module):
    """Gaussian Fourier features of a time, then an MLP: `t: [B] -> [B, width]`, float32 always.

    The features are the sines, then the cosines, of `2 pi t w` for 256 frequencies w drawn once from N(0, 1), and
    trained only if `trained`; `frequencies` draws them.
    """

    width: int
    num_frequencies: int = 256
    start: Start = TIME_START
    trained: bool = False
    frequencies: Initializer = NORMAL

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        frequencies = self.param("frequencies", named(self.frequencies, None), (self.num_frequencies,))
        if not self.trained:
            frequencies = jax.lax.stop_gradient(frequencies)
        angle = t.astype(jnp.float32)[:, None] * frequencies * (2 * math.pi)
        features = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        hidden = self.dense(axes=(None, "mlp"), name="hidden")(features)
        return self.dense(axes=("mlp", "embed"), name="out")(nn.silu(hidden))

    def dense(self, axes: tuple[str | None, str], name: str) -> Dense:
        """A linear layer in true float32: TPUs would otherwise round the factors of the product to bfloat16."""
        precision = jax.lax.Precision.HIGHEST
        return Dense(self.width, axes, jnp.float32, start=self.start, collect=False, precision=precision, name=name)


class LabelEmbedding(nn.Module):
    """Learned vector of a class: `labels: [B]` integers in `[0, num_classes] -> [B, width]`, float32.

    The last row, `num_classes`, is the null label, which stands for no class.
    """

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        init = named(nn.initializers.normal(0.02), "classes", "embed")
        return nn.Embed(self.num_classes + 1, self.width, embedding_init=init, name="table")(labels)


def time_embeddings(
    t: jax.Array,
    r: jax.Array | None,
    guidance: jax.Array | None = None,
    *,
    width: int,
    flow_map: bool,
    guided: bool = False,
    bias: Callable[[int], Initializer] = ZEROS.bias,
    trained: bool = False,
    frequencies: Initializer = NORMAL,
) -> list[jax.Array]:
    """The embedding of `t`, and that of `t - r` in a flow map, each `[B, width]`, inside the calling compact module.

    With `guided` those of guidance follow, a scale w and the ends of its interval: of `1 - 1 / w`, which is in [0, 1)
    as times are, of t_min and of t_max (iMF).

    Args:
      guidance: `[B, 3]`, (w, t_min, t_max).
      bias: how the biases of the embedding of `t` start.
      trained: whether the frequencies are.
      frequencies: draws those of the embedding of `t`.

    Raises:
      ValueError: a flow map without `r`, or `r` given to a velocity model; `guidance` missing, or given to a network
        that takes none.
    """
    if flow_map != (r is not None):
        what = (
            "a flow map needs both times, r <= t; r is missing" if flow_map else "a velocity model takes t only, not r"
        )
        raise ValueError(f"flow_map={flow_map}: {what}")
    if guided != (guidance is not None):
        what = "guidance, [B, 3], is missing" if guided else "a network without that input takes no guidance"
        raise ValueError(f"guided={guided}: {what}")
    start = TIME_START._replace(bias=bias)
    embedded = [TimeEmbedding(width, start=start, trained=trained, frequencies=frequencies, name="time_embedding")(t)]
    if flow_map:
        # The released mean-flow models leave this embedder at PyTorch's default initialisation.
        embedded.append(TimeEmbedding(width, start=PYTORCH, trained=trained, name="duration_embedding")(t - r))
    if guided:
        scale, t_min, t_max = jnp.moveaxis(guidance, -1, 0)
        for name, value in {"scale": 1 - 1 / scale, "t_min": t_min, "t_max": t_max}.items():
            embedded.append(TimeEmbedding(width, trained=trained, name=f"{name}_embedding")(value))
    return embedded
