"""Latent spaces: where a generator lives, and the components that lead there from images and back."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params, of_module, spec
from rae_jax.components.decoders import decoder, images_of
from rae_jax.components.encoders import encoder, tokens_of, tokens_shape
from rae_jax.models import coder as rectified_coder
from rae_jax.models.autoencoder import EPSILON, LatentStatistics
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder
from rae_jax.models.coder import RectifiedCoder
from rae_jax.models.kl_vae import KLVAE

IDENTITY = "identity"  # as the weights of statistics: nothing is normalised


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """Where a generator lives: how images become latents and latents images.

    Attributes:
      shape: `(N, C)` of one latent, on a square grid.
      encoding, decoding: the components whose trained parameters each way needs, by name.
      encode: `({name: parameters}, images [B, H, W, 3] in [0, 1]) -> latents [B, N, C]`, not normalised.
      decode: `({name: parameters}, latents [B, N, C]) -> images [B, H, W, 3]`, not clamped.
    """

    shape: tuple[int, int]
    encoding: dict[str, Component]
    decoding: dict[str, Component]
    encode: Callable[[dict[str, Params], jax.Array], jax.Array]
    decode: Callable[[dict[str, Params], jax.Array], jax.Array]


def latent_space(config: ConfigDict, name: str | None = None) -> LatentSpace:
    """The latent space of the autoencoder `name`; without one, that of generators: `config.autoencoder` names it, and
    `config.latent_patch_size` says how many of its positions make a token.

    Raises:
      ValueError: unknown autoencoder, or patches that do not fill the grid.
    """
    if name is None:
        return in_patches(latent_space(config, config.autoencoder), config.latent_patch_size)
    if name not in LATENT_SPACES:
        raise ValueError(f"autoencoder={name!r} is not one of {list(LATENT_SPACES)}")
    return LATENT_SPACES[name](config)


def tokens_are_latents(config: ConfigDict) -> bool:
    """Whether the encoder's tokens are the latents that generators see, and need not be made again."""
    return config.autoencoder == "rae" and config.latent_patch_size == 1


def in_patches(space: LatentSpace, size: int) -> LatentSpace:
    """The same latents with `size` x `size` positions a token: `[B, N / size^2, size^2 C]`, channels last (Bagel).

    Raises:
      ValueError: patches do not fill the grid.
    """
    (tokens, channels), side = space.shape, math.isqrt(space.shape[0])
    if size < 1 or side % size:
        raise ValueError(f"latent_patch_size={size} does not divide the {side} x {side} positions of a latent")
    if size == 1:
        return space
    told = {"h": side // size, "p": size, "q": size}
    return dataclasses.replace(
        space,
        shape=(tokens // size**2, channels * size**2),
        encode=lambda parts, images: rearrange(space.encode(parts, images), "b (h p w q) c -> b (h w) (p q c)", **told),
        decode=lambda parts, latents: space.decode(
            parts, rearrange(latents, "b (h w) (p q c) -> b (h p w q) c", **told)
        ),
    )


def stats(config: ConfigDict) -> Component:
    """Mean and variance of the latents."""
    return _statistics(config, "stats", latent_space(config).shape, "the latents of config.autoencoder")


def feature_stats(config: ConfigDict) -> Component:
    """Mean and variance of the encoder's tokens, by which the bridge sees them normalised."""
    return _statistics(config, "feature_stats", tokens_shape(config), "the tokens of config.encoder")


def _statistics(config: ConfigDict, name: str, shape: tuple[int, int], described_by: str) -> Component:
    return Component(
        name=name,
        module=None,
        initializer=lambda key: {"mean": jnp.zeros(shape), "variance": jnp.ones(shape)},
        dtype="float32",
        kind="latent_stats",
        weights=config[name].weights,
        described_by=described_by,
    )


def identity_statistics(structure: Params) -> Params:
    """Statistics of the shapes of `structure` with which `LatentStatistics` leaves every latent as it is."""
    mean, variance = structure["mean"], structure["variance"]
    return {"mean": np.zeros(mean.shape, np.float32), "variance": np.full(variance.shape, 1 - EPSILON, np.float32)}


def bridge_encoder(config: ConfigDict) -> Component:
    """The half of the variational bridge that compresses the encoder's tokens (RPiAE)."""
    fields = config.bridge_encoder.model.to_dict()
    return of_module(
        config,
        "bridge_encoder",
        lambda dtype: BridgeEncoder(**fields, dtype=dtype),
        spec(*tokens_shape(config)),
        kind="rpiae_bridge",
    )


def bridge_decoder(config: ConfigDict) -> Component:
    """The half of the variational bridge that restores them."""
    fields = config.bridge_decoder.model.to_dict()
    tokens, _ = tokens_shape(config)
    return of_module(
        config,
        "bridge_decoder",
        lambda dtype: BridgeDecoder(**fields, dtype=dtype),
        spec(tokens, config.bridge_encoder.model.latent_channels),
        kind="rpiae_bridge",
    )


def teacher(config: ConfigDict) -> Component:
    """The KL-VAE: the latent space `kl`, in which a rectified coder decodes too (RAC)."""
    fields, size = config.teacher.model.to_dict(), config.data.image_size
    return of_module(
        config, "teacher", lambda dtype: KLVAE(**fields, dtype=dtype), spec(size, size, 3), kind="diffusers_kl"
    )


def coder(config: ConfigDict, name: str = "coder") -> Component:
    """The rectified flow auto coder of the teacher's latents; under the name "tuned_coder" after end-to-end tuning."""
    fields = config.coder.model.to_dict() | {
        "latent_channels": config.teacher.model.latent_channels,
        "scale": pixels_a_latent(config),
    }
    size = config.data.image_size
    return of_module(
        config,
        name,
        lambda dtype: RectifiedCoder(**fields, dtype=dtype),
        spec(size, size, config.coder.model.state_channels),
        spec(),
        kind="rac_coder",
        described_by="config.coder.model",
    )


def pixels_a_latent(config: ConfigDict) -> int:
    """Pixels along one position of the teacher's latent."""
    return 2 ** (len(config.teacher.model.channels) - 1)


def _tokens_of_the_encoder(config: ConfigDict) -> LatentSpace:
    """RAE: the latent is the encoder's tokens."""
    to_tokens, to_images = tokens_of(config), images_of(config)
    return LatentSpace(
        shape=tokens_shape(config),
        encoding={"encoder": encoder(config)},
        decoding={"decoder": decoder(config)},
        encode=lambda parts, images: to_tokens(parts["encoder"], images),
        decode=lambda parts, latents: to_images(parts["decoder"], latents),
    )


def _latent_of_the_bridge(config: ConfigDict) -> LatentSpace:
    """RPiAE: the bridge stands between the encoder's tokens, normalised by the statistics `feature_stats`, and the
    decoder; the latent is the posterior's mode.
    """
    to_tokens, to_images = tokens_of(config), images_of(config)
    compress, restore = bridge_encoder(config), bridge_decoder(config)
    tokens, _ = tokens_shape(config)

    def encode(parts: dict[str, Params], images: jax.Array) -> jax.Array:
        features = LatentStatistics(**parts["feature_stats"]).normalise(to_tokens(parts["encoder"], images))
        return compress.apply(parts["bridge_encoder"], features).mode()

    def decode(parts: dict[str, Params], latents: jax.Array) -> jax.Array:
        features = restore.apply(parts["bridge_decoder"], latents)
        return to_images(parts["decoder"], features, LatentStatistics(**parts["feature_stats"]))

    return LatentSpace(
        shape=(tokens, compress.module.latent_channels),
        encoding=by_name(feature_stats(config), compress, encoder(config)),
        decoding=by_name(feature_stats(config), restore, decoder(config)),
        encode=encode,
        decode=decode,
    )


def _latents_of_the_teacher(config: ConfigDict) -> LatentSpace:
    """A KL-VAE's own: the latent is the posterior's mode."""
    model = teacher(config)
    side = config.data.image_size // pixels_a_latent(config)
    return LatentSpace(
        shape=(side**2, model.module.latent_channels),
        encoding=by_name(model),
        decoding=by_name(model),
        encode=lambda parts, images: model.apply(parts["teacher"], images, method="encode").mode(),
        decode=lambda parts, latents: model.apply(parts["teacher"], latents, method="decode"),
    )


def _latents_decoded_by_the_coder(config: ConfigDict) -> LatentSpace:
    """RAC: the teacher's latents, which the coder decodes, or its own if it also encodes."""
    space, model, num_steps = _latents_of_the_teacher(config), coder(config), config.sampling.coder_steps

    def encode(parts: dict[str, Params], images: jax.Array) -> jax.Array:
        with model.precise():
            return rectified_coder.encode(model.module, parts["coder"], images, num_steps)

    def decode(parts: dict[str, Params], latents: jax.Array) -> jax.Array:
        with model.precise():
            return rectified_coder.decode(model.module, parts["coder"], latents, num_steps)

    space = dataclasses.replace(space, decoding=by_name(model), decode=decode)
    return dataclasses.replace(space, encoding=by_name(model), encode=encode) if config.coder.encodes else space


def _pixels(config: ConfigDict) -> LatentSpace:
    """No autoencoder: every pixel is a token of three channels in [-1, 1], for generators with large patches."""
    size = config.data.image_size
    return LatentSpace(
        shape=(size**2, 3),
        encoding={},
        decoding={},
        encode=lambda parts, images: images.reshape(-1, size**2, 3) * 2.0 - 1.0,
        decode=lambda parts, latents: (latents.reshape(-1, size, size, 3) + 1.0) / 2.0,
    )


def by_name(*components: Component) -> dict[str, Component]:
    """The components under their names."""
    return {component.name: component for component in components}


LATENT_SPACES = {
    "rae": _tokens_of_the_encoder,
    "rpiae": _latent_of_the_bridge,
    "kl": _latents_of_the_teacher,
    "rac": _latents_decoded_by_the_coder,
    "pixels": _pixels,
}
