"""The KL-regularised convolutional autoencoder of Stable Diffusion: a baseline, and a decoder for others.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022). Feature maps are `[B, h, w, C]`;
levels are counted from the full resolution, each next one half as large.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from rae_jax.models.layers import PYTORCH, Attention, Dense, Start, named
from rae_jax.models.posterior import DiagonalGaussian

NORM_EPSILON = 1e-6
START = Start(PYTORCH.kernel)  # as the convolutions, with biases of zero

# Arguments of `KLVAE` for Stable Diffusion 1.x and 2.x, `stabilityai/sd-vae-ft-ema` and `-mse` among them.
STABLE_DIFFUSION = {"channels": (128, 256, 512, 512), "latent_channels": 4, "scaling_factor": 0.18215}
# Arguments of `ConvDecoder`: what RPiAE's Table 5b puts in place of its transformer decoder, 16 pixels a token.
RPIAE_CONV_DECODER = {"channels": (128, 128, 256, 256, 512), "blocks_per_level": 2, "attention_levels": (4,)}


def conv(features: int, axes: tuple[str | None, str | None], *, dtype: Any, name: str, **options: Any) -> nn.Conv:
    """3 x 3 convolution `[B, h, w, in] -> [B, h, w, features]`; `axes` names the kernel's input and output channels."""
    return nn.Conv(
        features,
        (3, 3),
        dtype=dtype,
        kernel_init=named(START.kernel, None, None, *axes),
        bias_init=named(nn.initializers.zeros, None),
        name=name,
        **options,
    )


def group_norm(num_groups: int, dtype: Any, name: str) -> nn.GroupNorm:
    """Group norm with scale and bias; statistics in float32."""
    return nn.GroupNorm(
        num_groups,
        epsilon=NORM_EPSILON,
        dtype=dtype,
        scale_init=named(nn.initializers.ones, None),
        bias_init=named(nn.initializers.zeros, None),
        use_fast_variance=False,
        name=name,
    )


class ResidualBlock(nn.Module):
    """Two convolutions, each after group norm and SiLU, beside a skip: `[B, h, w, C] -> [B, h, w, channels]`."""

    channels: int
    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.silu(group_norm(self.num_groups, self.dtype, "norm_0")(x))
        y = conv(self.channels, ("embed", "mlp"), dtype=self.dtype, name="conv_0")(y)
        y = nn.silu(group_norm(self.num_groups, self.dtype, "norm_1")(y))
        y = conv(self.channels, ("mlp", "embed"), dtype=self.dtype, name="conv_1")(y)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, ("embed", None), start=START, dtype=self.dtype, name="shortcut")(x)
        return x + y


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions after a group norm, beside a skip: `[B, h, w, C]` to itself."""

    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        tokens = rearrange(group_norm(self.num_groups, self.dtype, "norm")(x), "b h w c -> b (h w) c")
        y = Attention(1, start=START, dtype=self.dtype, name="attention")(tokens)
        return x + y.reshape(x.shape)


def level(
    x: jax.Array, channels: int, num_blocks: int, attention: bool, *, num_groups: int, dtype: Any, name: str
) -> jax.Array:
    """`num_blocks` residual blocks at one resolution, each with attention after it if asked, in a compact module."""
    for i in range(num_blocks):
        x = ResidualBlock(channels, num_groups, dtype, name=f"{name}_residual_{i}")(x)
        if attention:
            x = AttentionBlock(num_groups, dtype, name=f"{name}_attention_{i}")(x)
    return x


def middle(x: jax.Array, attention: bool, *, num_groups: int, dtype: Any) -> jax.Array:
    """Two residual blocks, with attention between them if asked, at the lowest resolution, in a compact module."""
    x = ResidualBlock(x.shape[-1], num_groups, dtype, name="middle_residual_0")(x)
    if attention:
        x = AttentionBlock(num_groups, dtype, name="middle_attention")(x)
    return ResidualBlock(x.shape[-1], num_groups, dtype, name="middle_residual_1")(x)


class ConvEncoder(nn.Module):
    """Images `[B, H, W, C]` -> feature map `[B, h, w, out_channels]`, float32, with `H = h * 2^(levels - 1)`.

    Attributes:
      channels: of each level.
      out_channels: of the result.
      blocks_per_level: residual blocks at each level.
      attention_levels: levels that have attention after each residual block.
      middle_attention: whether there is attention at the end, at the lowest resolution.
      num_groups: of every group norm.
      dtype: of convolutions and products except the last; norm statistics and the softmax are float32.
    """

    channels: tuple[int, ...]
    out_channels: int
    blocks_per_level: int = 2
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = True
    num_groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        scale = 2 ** (len(self.channels) - 1)
        if images.shape[1] % scale or images.shape[2] % scale:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} cannot be halved {len(self.channels) - 1} times; "
                f"resize them to a multiple of {scale}"
            )
        shared = {"num_groups": self.num_groups, "dtype": self.dtype}
        x = conv(self.channels[0], ("patch", "embed"), dtype=self.dtype, name="conv_in")(images)
        for i, channels in enumerate(self.channels):
            if i > 0:
                # Padded below and on the right only, as in the published models.
                x = conv(
                    x.shape[-1],
                    ("embed", None),
                    strides=2,
                    padding=((0, 1), (0, 1)),
                    dtype=self.dtype,
                    name=f"level_{i - 1}_down",
                )(x)
            x = level(x, channels, self.blocks_per_level, i in self.attention_levels, **shared, name=f"level_{i}")
        x = middle(x, self.middle_attention, **shared)
        x = nn.silu(group_norm(self.num_groups, jnp.float32, "norm_out")(x))
        return conv(self.out_channels, ("embed", "patch"), dtype=jnp.float32, name="conv_out")(x)


class ConvDecoder(nn.Module):
    """Feature map `z: [B, h, w, C]` -> images `[B, H, W, out_channels]`, float32, with `H = h * 2^(levels - 1)`.

    Tokens `[B, N, C]` are taken as the feature map of a square grid, so that it can stand where a `ViTDecoder` does
    (RPiAE, Table 5b). The images are not clamped.

    Attributes:
      channels: of each level, the full resolution first.
      out_channels: of the images.
      blocks_per_level: as the encoder has them; a decoder has one more residual block at each level.
      attention_levels, middle_attention, num_groups, dtype: as in `ConvEncoder`.
    """

    last_layer = "conv_out"  # no field: the name of the layer that makes the pixels

    channels: tuple[int, ...]
    out_channels: int = 3
    blocks_per_level: int = 2
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = True
    num_groups: int = 32
    dtype: Any = jnp.float32

    @property
    def upsampling(self) -> int:
        """How many pixels a side each token makes."""
        return 2 ** (len(self.channels) - 1)

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        shared = {"num_groups": self.num_groups, "dtype": self.dtype}
        x = conv(self.channels[-1], ("patch", "embed"), dtype=self.dtype, name="conv_in")(to_map(z))
        x = middle(x, self.middle_attention, **shared)
        for i, channels in reversed(list(enumerate(self.channels))):
            x = level(x, channels, self.blocks_per_level + 1, i in self.attention_levels, **shared, name=f"level_{i}")
            if i > 0:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = conv(channels, ("embed", None), dtype=self.dtype, name=f"level_{i}_up")(x)
        x = nn.silu(group_norm(self.num_groups, jnp.float32, "norm_out")(x))
        return conv(self.out_channels, ("embed", "patch"), dtype=jnp.float32, name="conv_out")(x)


def to_map(z: jax.Array) -> jax.Array:
    """Tokens of a square grid `[B, N, C]` as a feature map `[B, h, w, C]`; a feature map as it is.

    Raises:
      ValueError: N is not a square.
    """
    if z.ndim == 4:
        return z
    side = math.isqrt(z.shape[1])
    if side * side != z.shape[1]:
        raise ValueError(f"{z.shape[1]} tokens are not a square grid; pass the latent as [B, h, w, C]")
    return rearrange(z, "b (h w) c -> b h w c", h=side)


class KLVAE(nn.Module):
    """Images `[B, H, W, 3]` in [0, 1] -> posterior of the latent tokens `[B, N, C]`, and back.

    The network itself works on pixels in [-1, 1]; the conversion is inside. `encode` and `decode` need only their own
    half of the parameters (`encoder` and `quant_linear`; `post_quant_linear` and `decoder`).

    Attributes:
      channels: of each level, the full resolution first.
      latent_channels: C.
      blocks_per_level: residual blocks at each level of the encoder; the decoder has one more.
      encoder_attention_levels, decoder_attention_levels: levels with attention; the published models have none there.
      middle_attention: whether there is attention at the lowest resolution.
      num_groups: of every group norm.
      out_channels: of the decoded images.
      quant, post_quant: whether a linear map of the channels follows the encoder and precedes the decoder.
      scaling_factor, shift_factor: the latent outside is the network's less the shift, times the scaling factor,
        which gives a published model's latent about unit variance; 1 and 0 while the autoencoder itself is trained.
      dtype: of convolutions and products, except the last of each half.
    """

    channels: tuple[int, ...]
    latent_channels: int
    blocks_per_level: int = 2
    encoder_attention_levels: tuple[int, ...] = ()
    decoder_attention_levels: tuple[int, ...] = ()
    middle_attention: bool = True
    num_groups: int = 32
    out_channels: int = 3
    quant: bool = True
    post_quant: bool = True
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        shared = {
            "channels": self.channels,
            "blocks_per_level": self.blocks_per_level,
            "middle_attention": self.middle_attention,
            "num_groups": self.num_groups,
            "dtype": self.dtype,
        }
        moments = 2 * self.latent_channels
        self.encoder = ConvEncoder(out_channels=moments, attention_levels=self.encoder_attention_levels, **shared)
        self.decoder = ConvDecoder(
            out_channels=self.out_channels, attention_levels=self.decoder_attention_levels, **shared
        )
        pointwise = {"axes": ("patch", None), "start": START, "dtype": jnp.float32, "name": None}
        if self.quant:
            self.quant_linear = Dense(moments, **pointwise)
        if self.post_quant:
            self.post_quant_linear = Dense(self.latent_channels, **pointwise)

    def encode(self, images: jax.Array) -> DiagonalGaussian:
        """The posterior of the latent `[B, N, C]`, row-major over the grid, of images `[B, H, W, 3]` in [0, 1]."""
        moments = rearrange(self.encoder(images * 2.0 - 1.0), "b h w c -> b (h w) c")
        posterior = DiagonalGaussian.from_moments(self.quant_linear(moments) if self.quant else moments)
        return DiagonalGaussian(
            mean=(posterior.mean - self.shift_factor) * self.scaling_factor,
            logvar=posterior.logvar + 2.0 * math.log(self.scaling_factor),
        )

    def decode(self, z: jax.Array) -> jax.Array:
        """Images `[B, H, W, 3]` in the scale of [0, 1], not clamped to it, of latent tokens `[B, N, C]`.

        The latent of images that are not square is given as `[B, h, w, C]`.

        Raises:
          ValueError: tokens whose number is not a square.
        """
        z = z / self.scaling_factor + self.shift_factor
        return self.decoder(self.post_quant_linear(z) if self.post_quant else z) / 2.0 + 0.5

    def __call__(self, images: jax.Array) -> jax.Array:
        """The reconstruction of images `[B, H, W, 3]` in [0, 1] from the posterior's mode, not clamped."""
        z = self.encode(images).mode()
        scale = 2 ** (len(self.channels) - 1)
        return self.decode(rearrange(z, "b (h w) c -> b h w c", h=images.shape[1] // scale))
