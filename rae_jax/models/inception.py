"""The Inception-v3 network of 2015-12-05 that FID, sFID, the Inception score, precision and recall are defined by.

It differs from later Inception-v3 networks: average pools leave the padding out of the mean, the last block pools by
maximum, and images are resized as TensorFlow 1 did. Modules carry the names of the usual PyTorch port.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

IMAGE_SIZE = 299
SPATIAL_CHANNELS = 7


class InceptionFeatures(NamedTuple):
    """What ADM's evaluator reads off the network, for B images.

    Attributes:
      pool: `[B, 2048]`, the last block averaged over space: FID, precision and recall.
      spatial: `[B, 2023]`, the first 7 channels of a 17 x 17 layer: sFID.
      logits: `[B, 1008]`, class logits without the bias: Inception score.
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array


def resize_bilinear_tf1(images: jax.Array, size: int) -> jax.Array:
    """`[B, H, W, C] -> [B, size, size, C]`, bilinear with output i reading input position `i * H / size`.

    TensorFlow 1's `resize_bilinear`: no half-pixel centres, no antialiasing, the last row and column repeated.
    """
    rows, columns = (_interpolation(images.shape[axis], size) for axis in (1, 2))
    return jnp.einsum("iy,byxc,jx->bijc", rows, images, columns, precision=jax.lax.Precision.HIGHEST)


def _interpolation(source: int, target: int) -> np.ndarray:
    """The matrix `[target, source]` of linear interpolation along one axis; positions in float32, as TensorFlow's."""
    position = np.arange(target, dtype=np.float32) * np.float32(source / target)
    low = position.astype(int)
    high = np.minimum(low + 1, source - 1)
    matrix = np.zeros((target, source), np.float32)
    np.add.at(matrix, (np.arange(target), low), 1 - (position - low))
    np.add.at(matrix, (np.arange(target), high), position - low)
    return matrix


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm by its stored statistics (epsilon 1e-3), ReLU; all in float32."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel_shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), kernel_shape)
        scale = self.param("scale", nn.initializers.ones, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        mean = self.param("mean", nn.initializers.zeros, (self.features,))
        var = self.param("var", nn.initializers.ones, (self.features,))
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return nn.relu((x - mean) * (scale * jax.lax.rsqrt(var + 1e-3)) + bias)


def _average_pool(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), padding="SAME")


def _shrink(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2))


class MixedA(nn.Module):
    """Branches of 1 x 1, 5 x 5 and two 3 x 3 convolutions and a pool, at 35 x 35."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = ConvNorm(64, (1, 1), name="branch1x1")(x)
        five = ConvNorm(48, (1, 1), name="branch5x5_1")(x)
        five = ConvNorm(64, (5, 5), name="branch5x5_2")(five)
        three = ConvNorm(64, (1, 1), name="branch3x3dbl_1")(x)
        three = ConvNorm(96, (3, 3), name="branch3x3dbl_2")(three)
        three = ConvNorm(96, (3, 3), name="branch3x3dbl_3")(three)
        pool = ConvNorm(self.pool_features, (1, 1), name="branch_pool")(_average_pool(x))
        return jnp.concatenate([one, five, three, pool], axis=-1)


class MixedB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = ConvNorm(384, (3, 3), stride=2, padding="VALID", name="branch3x3")(x)
        double = ConvNorm(64, (1, 1), name="branch3x3dbl_1")(x)
        double = ConvNorm(96, (3, 3), name="branch3x3dbl_2")(double)
        double = ConvNorm(96, (3, 3), stride=2, padding="VALID", name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, _shrink(x)], axis=-1)


class MixedC(nn.Module):
    """Branches of 1 x 1 and factorised 7 x 7 convolutions of width `width` and a pool, at 17 x 17.

    Returns the block's output and that of its 1 x 1 branch, which sFID looks at.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        row, column = (1, 7), (7, 1)
        one = ConvNorm(192, (1, 1), name="branch1x1")(x)
        seven = ConvNorm(self.width, (1, 1), name="branch7x7_1")(x)
        seven = ConvNorm(self.width, row, name="branch7x7_2")(seven)
        seven = ConvNorm(192, column, name="branch7x7_3")(seven)
        double = ConvNorm(self.width, (1, 1), name="branch7x7dbl_1")(x)
        double = ConvNorm(self.width, column, name="branch7x7dbl_2")(double)
        double = ConvNorm(self.width, row, name="branch7x7dbl_3")(double)
        double = ConvNorm(self.width, column, name="branch7x7dbl_4")(double)
        double = ConvNorm(192, row, name="branch7x7dbl_5")(double)
        pool = ConvNorm(192, (1, 1), name="branch_pool")(_average_pool(x))
        return jnp.concatenate([one, seven, double, pool], axis=-1), one


class MixedD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = ConvNorm(192, (1, 1), name="branch3x3_1")(x)
        three = ConvNorm(320, (3, 3), stride=2, padding="VALID", name="branch3x3_2")(three)
        seven = ConvNorm(192, (1, 1), name="branch7x7x3_1")(x)
        seven = ConvNorm(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = ConvNorm(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = ConvNorm(192, (3, 3), stride=2, padding="VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _shrink(x)], axis=-1)


class MixedE(nn.Module):
    """Branches that end in parallel 1 x 3 and 3 x 1 convolutions, and a pool by maximum or average, at 8 x 8."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        row, column = (1, 3), (3, 1)
        one = ConvNorm(320, (1, 1), name="branch1x1")(x)
        three = ConvNorm(384, (1, 1), name="branch3x3_1")(x)
        three_row = ConvNorm(384, row, name="branch3x3_2a")(three)
        three_column = ConvNorm(384, column, name="branch3x3_2b")(three)
        double = ConvNorm(448, (1, 1), name="branch3x3dbl_1")(x)
        double = ConvNorm(384, (3, 3), name="branch3x3dbl_2")(double)
        double_row = ConvNorm(384, row, name="branch3x3dbl_3a")(double)
        double_column = ConvNorm(384, column, name="branch3x3dbl_3b")(double)
        pooled = _max_pool(x) if self.max_pool else _average_pool(x)
        pool = ConvNorm(192, (1, 1), name="branch_pool")(pooled)
        return jnp.concatenate([one, three_row, three_column, double_row, double_column, pool], axis=-1)


class Inception(nn.Module):
    """Images `[B, H, W, 3]` in 0 .. 255, of any size, to `InceptionFeatures`; float32 throughout, no training mode."""

    @nn.compact
    def __call__(self, images: jax.Array) -> InceptionFeatures:
        x = resize_bilinear_tf1(images.astype(jnp.float32), IMAGE_SIZE)
        x = (x - 128) / 128
        x = ConvNorm(32, (3, 3), stride=2, padding="VALID", name="Conv2d_1a_3x3")(x)
        x = ConvNorm(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
        x = ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = _shrink(x)
        x = ConvNorm(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = ConvNorm(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x)
        x = _shrink(x)  # [B, 35, 35, 192]
        x = MixedA(pool_features=32, name="Mixed_5b")(x)
        x = MixedA(pool_features=64, name="Mixed_5c")(x)
        x = MixedA(pool_features=64, name="Mixed_5d")(x)
        x = MixedB(name="Mixed_6a")(x)  # [B, 17, 17, 768]
        x, _ = MixedC(width=128, name="Mixed_6b")(x)
        x, _ = MixedC(width=160, name="Mixed_6c")(x)
        x, branch = MixedC(width=160, name="Mixed_6d")(x)  # the branch is TensorFlow's "mixed_6/conv:0"
        x, _ = MixedC(width=192, name="Mixed_6e")(x)
        x = MixedD(name="Mixed_7a")(x)  # [B, 8, 8, 1280]
        x = MixedE(max_pool=False, name="Mixed_7b")(x)
        x = MixedE(max_pool=True, name="Mixed_7c")(x)
        pool = jnp.mean(x, axis=(1, 2))
        logits = nn.Dense(1008, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="fc")(pool)
        spatial = branch[..., :SPATIAL_CHANNELS].reshape(len(branch), -1)
        return InceptionFeatures(pool, spatial, logits)
