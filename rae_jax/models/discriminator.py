"""The discriminator of the decoder's adversarial loss: trained heads on a frozen DINO's features at several depths."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rae_jax.models.layers import REMAT_POLICIES
from rae_jax.models.vit import IMAGENET_MEAN, IMAGENET_STD, Block, Embedding, choice

# DINO ViT-S/8 (Caron et al., 2021), the published discriminator's features.
DINO_S8 = {
    "image_size": 224,
    "patch_size": 8,
    "width": 384,
    "depth": 12,
    "num_heads": 6,
    "mlp_dim": 1536,
    "key_depths": (2, 5, 8, 11),
}


class DinoFeatures(nn.Module):
    """Patch tokens `[B, N, D]` after chosen blocks of a DINO ViT, from images `[B, H, W, 3]` in [-1, 1].

    Images are resized to `image_size` (bilinear, no antialias) and normalised as ImageNet's. The list starts with the
    last block's output, without the final norm, followed by those of `key_depths` (the last block again, if it is one).
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    key_depths: tuple[int, ...]
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        images = jax.image.resize(
            images, (images.shape[0], self.image_size, self.image_size, 3), "linear", antialias=False
        )
        images = ((images + 1.0) / 2.0 - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)
        embedding = Embedding(self.image_size, self.patch_size, self.width, dtype=self.dtype, name="embedding")
        block = Block if self.remat == "none" else nn.remat(Block, policy=choice("remat", self.remat, REMAT_POLICIES))
        x, outputs = embedding(images), []
        for i in range(self.depth):
            x = block(
                self.num_heads,
                self.mlp_dim,
                activation="gelu_tanh",
                norm_epsilon=self.norm_epsilon,
                dtype=self.dtype,
                name=f"blocks_{i}",
            )(x)
            outputs.append(x[:, 1:])
        return [outputs[-1], *(outputs[i] for i in self.key_depths)]


class SpectralConv(nn.Module):
    """Circular convolution over tokens, `[B, N, C] -> [B, N, features]`, its kernel divided by its spectral norm.

    The spectral norm, the largest singular value, is `u . W v` with the vectors of collection `spectral`:
    `u: [features]` and `v: [kernel_size * C]`, in the kernel's own order. With `update` one power iteration renews them
    first (Miyato et al., 2018).
    """

    features: int
    kernel_size: int = 1
    spectral_norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, update: bool) -> jax.Array:
        shape = (self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", uniform_fan_in, shape)
        bias = self.param("bias", lambda key, size: uniform_fan_in(key, size, math.prod(shape[:2])), (self.features,))
        if self.spectral_norm:
            kernel = kernel / self.largest_singular_value(kernel, update)
        reach = self.kernel_size // 2
        x = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)), mode="wrap")
        return jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")) + bias

    def largest_singular_value(self, kernel: jax.Array, update: bool) -> jax.Array:
        matrix = kernel.reshape(-1, self.features).T

        def start(side: int) -> jax.Array:
            return unit(jax.random.normal(self.make_rng("params"), (matrix.shape[side],)))

        u, v = self.variable("spectral", "u", start, 0), self.variable("spectral", "v", start, 1)
        if update:
            fixed = jax.lax.stop_gradient(matrix)
            v.value = unit(product(u.value, fixed))
            u.value = unit(product(fixed, v.value))
        return product(u.value, product(matrix, v.value))


class Head(nn.Module):
    """One judgement a token: `[B, N, D] -> [B, N]`.

    Convolution of one token and of `kernel_size` tokens, the latter a residual branch, each with norm and leaky ReLU;
    then a convolution to the logit.
    """

    kernel_size: int
    spectral_norm: bool
    norm_epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, update: bool) -> jax.Array:
        def block(x: jax.Array, kernel_size: int, name: str) -> jax.Array:
            x = SpectralConv(x.shape[-1], kernel_size, self.spectral_norm, name=name)(x, update)
            return nn.leaky_relu(TokenNorm(self.norm_epsilon, name=f"{name}_norm")(x), 0.2)

        x = block(x, 1, "first")
        x = (block(x, self.kernel_size, "residual") + x) / math.sqrt(2.0)
        return SpectralConv(1, 1, self.spectral_norm, name="logit")(x, update)[:, :, 0]


class TokenNorm(nn.Module):
    """Each image's channels normalised over its tokens, with scale and bias: `[B, N, D] -> [B, N, D]`.

    The reference calls it batch norm; its batch is one image, in training and afterwards.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x - jnp.mean(x, axis=1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=1, keepdims=True) + self.epsilon) * scale + bias


class Heads(nn.Module):
    """One `Head` for each of a list of features `[B, N, D]`; their logits side by side, `[B, len(features) * N]`."""

    kernel_size: int = 9
    spectral_norm: bool = True
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, features: list[jax.Array], update: bool = False) -> jax.Array:
        logits = [
            Head(self.kernel_size, self.spectral_norm, self.norm_epsilon, name=f"head_{i}")(x, update)
            for i, x in enumerate(features)
        ]
        return jnp.concatenate(logits, axis=1)


class DinoDiscriminator(nn.Module):
    """Logits `[B, heads * N]` of images `[B, H, W, 3]` in [-1, 1]: larger for real (RAE; first in StyleGAN-T).

    `params` are `{"dino": ..., "heads": ...}`, of which the heads alone are trained; collection `spectral` holds the
    heads' power iteration. While the discriminator is trained, each call renews it:
    `logits, new = model.apply({"params": p, "spectral": s}, images, update=True, mutable=["spectral"])`. While the
    generator is, it stays: `model.apply({"params": p, "spectral": s}, images)`.
    """

    dino: DinoFeatures
    heads: Heads

    def __call__(self, images: jax.Array, update: bool = False) -> jax.Array:
        return self.heads(self.dino(images), update)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` in true float32: TPUs would otherwise round the factors to bfloat16."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def unit(x: jax.Array) -> jax.Array:
    """`x / max(|x|, 1e-12)`."""
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], fan_in: int | None = None) -> jax.Array:
    """Uniform within `1 / sqrt(fan_in)` of zero, what PyTorch gives a convolution; `[k, in, out]` tells its own."""
    bound = 1.0 / math.sqrt(fan_in or math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
