"""The models that a config describes: where configuration values become modules."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from rae_jax.flow.times import dimension_shift
from rae_jax.models import coder as rectified_coder
from rae_jax.models.alignment import AlignmentProjector
from rae_jax.models.autoencoder import EPSILON, LatentStatistics, RepresentationAutoencoder
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder
from rae_jax.models.coder import RectifiedCoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.discriminator import DinoDiscriminator, DinoFeatures, Heads
from rae_jax.models.dit_dh import DiTDH
from rae_jax.models.inception import IMAGE_SIZE, Inception
from rae_jax.models.kl_vae import KLVAE, ConvDecoder
from rae_jax.models.lightning_dit import LightningDiT
from rae_jax.models.lpips import LPIPS
from rae_jax.models.vit import VisionTransformer

Params = Any
RANDOM = "random"  # as a component's weights: untrained ones
IDENTITY = "identity"  # as the weights of statistics: nothing is normalised
LAST_KERNELS = {"vit": "pixels", "conv": "conv_out"}  # of the decoder's families
FLOW_FAMILIES = {"dit_dh": DiTDH, "lightning_dit": LightningDiT}


def trained_components(config: ConfigDict, stage: str) -> tuple[str, ...]:
    """The components that `stage` trains: those that its section lists as `trains`, or the one of its own name."""
    return tuple(config[stage].get("trains", (stage,)))


def trained_by(config: ConfigDict, component: str, before: str | None = None) -> str | None:
    """The last stage that trains `component`, of those before the stage `before` if it is given; None if none does."""
    stages = tuple(config.stages)
    if before is not None:
        stages = stages[: stages.index(before)]
    return next((stage for stage in reversed(stages) if component in trained_components(config, stage)), None)


def compute_dtype(config: ConfigDict) -> jnp.dtype:
    """The dtype of matrix products."""
    return jnp.dtype(config.dtype)


def encoder(config: ConfigDict) -> VisionTransformer:
    """The vision encoder."""
    return VisionTransformer(**config.encoder.model.to_dict(), dtype=compute_dtype(config))


def encoder_grid(config: ConfigDict) -> int:
    """Side of the square grid of the encoder's tokens."""
    return config.encoder.input_size // config.encoder.model.patch_size


def encoder_shape(config: ConfigDict) -> tuple[int, int]:
    """Shape `(N, D)` of the encoder's tokens."""
    return encoder_grid(config) ** 2, config.encoder.model.width


def decoder(config: ConfigDict) -> ViTDecoder | ConvDecoder:
    """The pixel decoder, of the family that `config.decoder.family` names.

    Raises:
      ValueError: unknown family.
    """
    if (family := config.decoder.family) not in LAST_KERNELS:
        raise ValueError(f"decoder.family={family!r} is not one of {list(LAST_KERNELS)}")
    fields = config.decoder.model.to_dict() | {"dtype": compute_dtype(config)}
    if family != "vit":
        return ConvDecoder(**fields)
    return ViTDecoder(**fields | {"grid_size": fields["grid_size"] or encoder_grid(config)})


def decoded_size(config: ConfigDict) -> int:
    """Side of the decoded images in pixels."""
    model = decoder(config)
    if isinstance(model, ViTDecoder):
        return model.grid_size * model.patch_size
    return encoder_grid(config) * model.upsampling


def last_kernel(config: ConfigDict, decoder: Params) -> jax.Array:
    """The kernel of the decoder's last layer, in its parameters or in their gradient."""
    return decoder[LAST_KERNELS[config.decoder.family]]["kernel"]


def autoencoder(config: ConfigDict) -> RepresentationAutoencoder:
    """Encoder and decoder as one module."""
    return RepresentationAutoencoder(
        encoder=encoder(config),
        decoder=decoder(config) if config.decoder.model else None,  # another decodes: only the encoder is used
        encoder_input_size=config.encoder.input_size,
        image_mean=tuple(config.encoder.image_mean),
        image_std=tuple(config.encoder.image_std),
    )


def teacher(config: ConfigDict) -> KLVAE:
    """The KL-VAE."""
    return KLVAE(**config.teacher.model.to_dict(), dtype=compute_dtype(config))


def coder(config: ConfigDict) -> RectifiedCoder:
    """The rectified flow auto coder of the teacher's latents."""
    return RectifiedCoder(
        latent_channels=config.teacher.model.latent_channels,
        scale=_pixels_a_latent(config),
        **config.coder.model.to_dict(),
        dtype=compute_dtype(config),
    )


def bridge_encoder(config: ConfigDict) -> BridgeEncoder:
    """The half of the variational bridge that compresses the encoder's tokens."""
    return BridgeEncoder(**config.bridge_encoder.model.to_dict(), dtype=compute_dtype(config))


def bridge_decoder(config: ConfigDict) -> BridgeDecoder:
    """The half of the variational bridge that restores them."""
    return BridgeDecoder(**config.bridge_decoder.model.to_dict(), dtype=compute_dtype(config))


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """Where the flow lives: how images become latents and latents images.

    Attributes:
      shape: `(N, C)` of one latent, on a square grid.
      encoding, decoding: the components whose trained parameters each way needs: name -> initializer.
      encode: `({name: parameters}, images [B, H, W, 3] in [0, 1]) -> latents [B, N, C]`, not normalised.
      decode: `({name: parameters}, latents [B, N, C]) -> images [B, H, W, 3]`, not clamped.
    """

    shape: tuple[int, int]
    encoding: dict[str, Callable[[jax.Array], Params]]
    decoding: dict[str, Callable[[jax.Array], Params]]
    encode: Callable[[dict[str, Params], jax.Array], jax.Array]
    decode: Callable[[dict[str, Params], jax.Array], jax.Array]


def latent_space(config: ConfigDict, name: str | None = None) -> LatentSpace:
    """The latent space of the autoencoder `name`; without one, of that which `config.autoencoder` names.

    Raises:
      ValueError: unknown autoencoder.
    """
    name = config.autoencoder if name is None else name
    if name not in LATENT_SPACES:
        raise ValueError(f"autoencoder={name!r} is not one of {list(LATENT_SPACES)}")
    return LATENT_SPACES[name](config)


def _tokens_of_the_encoder(config: ConfigDict) -> LatentSpace:
    model = autoencoder(config)

    def encode(parts: dict[str, Params], images: jax.Array) -> jax.Array:
        return model.apply({"params": {"encoder": parts["encoder"]}}, images, method="tokens")

    def decode(parts: dict[str, Params], latents: jax.Array) -> jax.Array:
        return model.apply({"params": {"decoder": parts["decoder"]}}, latents, method="decode")

    return LatentSpace(
        shape=encoder_shape(config),
        encoding={"encoder": encoder_init(config)},
        decoding={"decoder": decoder_init(config)},
        encode=encode,
        decode=decode,
    )


def _latents_of_the_teacher(config: ConfigDict) -> LatentSpace:
    model, part = teacher(config), {"teacher": teacher_init(config)}
    side = config.data.image_size // _pixels_a_latent(config)

    def encode(parts: dict[str, Params], images: jax.Array) -> jax.Array:
        return model.apply({"params": parts["teacher"]}, images, method="encode").mode()

    def decode(parts: dict[str, Params], latents: jax.Array) -> jax.Array:
        return model.apply({"params": parts["teacher"]}, latents, method="decode")

    return LatentSpace(
        shape=(side**2, config.teacher.model.latent_channels),
        encoding=part,
        decoding=part,
        encode=encode,
        decode=decode,
    )


def _latent_of_the_bridge(config: ConfigDict) -> LatentSpace:
    """RPiAE: the bridge stands between the encoder's tokens, normalised by the statistics `feature_stats`, and the
    decoder; the latent is the posterior's mode.
    """
    model, compress, restore = autoencoder(config), bridge_encoder(config), bridge_decoder(config)
    num_tokens, _ = encoder_shape(config)

    def encode(parts: dict[str, Params], images: jax.Array) -> jax.Array:
        tokens = model.apply({"params": {"encoder": parts["encoder"]}}, images, method="tokens")
        features = LatentStatistics(**parts["feature_stats"]).normalise(tokens)
        return compress.apply({"params": parts["bridge_encoder"]}, features).mode()

    def decode(parts: dict[str, Params], latents: jax.Array) -> jax.Array:
        features = restore.apply({"params": parts["bridge_decoder"]}, latents)
        statistics = LatentStatistics(**parts["feature_stats"])
        return model.apply({"params": {"decoder": parts["decoder"]}}, features, statistics, method="decode")

    inits = bridge_inits(config) | {"feature_stats": feature_stats_init(config)}
    return LatentSpace(
        shape=(num_tokens, compress.latent_channels),
        encoding={name: inits[name] for name in ("feature_stats", "bridge_encoder")}
        | {"encoder": encoder_init(config)},
        decoding={name: inits[name] for name in ("feature_stats", "bridge_decoder")}
        | {"decoder": decoder_init(config)},
        encode=encode,
        decode=decode,
    )


def _pixels_a_latent(config: ConfigDict) -> int:
    return 2 ** (len(config.teacher.model.channels) - 1)


def _latents_decoded_by_the_coder(config: ConfigDict) -> LatentSpace:
    space, model, part = _latents_of_the_teacher(config), coder(config), {"coder": coder_init(config)}
    num_steps = config.sampling.coder_steps

    def encode(parts: dict[str, Params], images: jax.Array) -> jax.Array:
        return rectified_coder.encode(model, parts["coder"], images, num_steps)

    def decode(parts: dict[str, Params], latents: jax.Array) -> jax.Array:
        return rectified_coder.decode(model, parts["coder"], latents, num_steps)

    space = dataclasses.replace(space, decoding=part, decode=decode)
    return dataclasses.replace(space, encoding=part, encode=encode) if config.coder.encodes else space


LATENT_SPACES = {
    "rae": _tokens_of_the_encoder,
    "rpiae": _latent_of_the_bridge,
    "kl": _latents_of_the_teacher,
    "rac": _latents_decoded_by_the_coder,
}


def latent_shape(config: ConfigDict) -> tuple[int, int]:
    """Shape `(N, C)` of one latent."""
    return latent_space(config).shape


def lpips(config: ConfigDict) -> LPIPS:
    """The perceptual distance."""
    return LPIPS(config.lpips.network)


def inception(config: ConfigDict) -> Inception:
    """The network whose features define rFID."""
    del config  # there is one
    return Inception()


def discriminator(config: ConfigDict) -> DinoDiscriminator:
    """The discriminator of the adversarial loss; the component of its name is the frozen part, the DINO."""
    section = config.discriminator
    dino = DinoFeatures(**section.model.to_dict(), dtype=compute_dtype(config))
    return DinoDiscriminator(dino, Heads(section.kernel_size, section.spectral_norm))


def alignment_projector(config: ConfigDict) -> AlignmentProjector:
    """What takes a generator's tokens to those of the encoder."""
    features = config.encoder.model.width
    return AlignmentProjector(features, config.flow.alignment_width, dtype=compute_dtype(config))


def velocity_model(config: ConfigDict, component: str = "flow") -> nn.Module:
    """The network that predicts the velocity in latent space: "flow", or "guidance", the weak one of AutoGuidance.

    Raises:
      ValueError: an unknown family, or no architecture.
    """
    num_tokens, channels = latent_shape(config)
    section = config[component]
    if section.family not in FLOW_FAMILIES:
        raise ValueError(f"{component}.family={section.family!r} is not one of {list(FLOW_FAMILIES)}")
    if not section.model:
        raise ValueError(f"{component}.model is empty; it is to be what {section.family} of configs/base.py returns")
    return FLOW_FAMILIES[section.family](
        grid_size=math.isqrt(num_tokens),
        in_channels=channels,
        num_classes=config.flow.num_classes,
        dtype=compute_dtype(config),
        **section.model.to_dict(),
    )


def flow_map_model(config: ConfigDict) -> nn.Module:
    """The network that predicts the mean velocity: the velocity network with the second time."""
    return velocity_model(config).clone(flow_map=True)


def module(config: ConfigDict, component: str) -> nn.Module | None:
    """The module of the component that a section of the config describes, if it is one."""
    makers = {
        "encoder": encoder,
        "decoder": decoder,
        "lpips": lpips,
        "inception": inception,
        "discriminator": lambda config: discriminator(config).dino,
        "teacher": teacher,
        "coder": coder,
        "bridge_encoder": bridge_encoder,
        "bridge_decoder": bridge_decoder,
        "flow": velocity_model,
        "guidance": functools.partial(velocity_model, component="guidance"),
        "mid_training": flow_map_model,
        "flow_map": flow_map_model,
    }
    return makers[component](config) if component in makers else None


def time_shift(config: ConfigDict) -> float:
    """The dimension-dependent shift of the time grid (RAE, Section 4)."""
    return dimension_shift(math.prod(latent_shape(config)), config.flow.shift_base)


def spec(*shape: int, dtype: jnp.dtype = jnp.float32) -> jax.ShapeDtypeStruct:
    """A batch of one array of `shape`."""
    return jax.ShapeDtypeStruct((1, *shape), dtype)


def initializer(model: nn.Module, *arguments: jax.ShapeDtypeStruct) -> Callable[[jax.Array], Params]:
    """`key -> boxed parameters` of `model`, called on zeros of the given shapes."""

    def init(key: jax.Array) -> Params:
        return model.init(key, *(jnp.zeros(a.shape, a.dtype) for a in arguments))["params"]

    return init


def encoder_init(config: ConfigDict) -> Callable[[jax.Array], Params]:
    """Initializer of the encoder's parameters."""
    size = config.encoder.input_size
    return initializer(encoder(config), spec(size, size, 3))


def decoder_init(config: ConfigDict) -> Callable[[jax.Array], Params]:
    """Initializer of the decoder's parameters."""
    return initializer(decoder(config), spec(*encoder_shape(config)))


def lpips_init(config: ConfigDict) -> Callable[[jax.Array], Params]:
    """Initializer of LPIPS's parameters."""
    images = spec(64, 64, 3)  # no parameter depends on the size
    return initializer(lpips(config), images, images)


def inception_init(config: ConfigDict) -> Callable[[jax.Array], Params]:
    """Initializer of the Inception network's parameters."""
    return initializer(inception(config), spec(IMAGE_SIZE, IMAGE_SIZE, 3))


def discriminator_init(config: ConfigDict) -> Callable[[jax.Array], Params]:
    """Initializer of the discriminator's frozen part, the DINO."""
    dino = discriminator(config).dino
    return initializer(dino, spec(dino.image_size, dino.image_size, 3))


def teacher_init(config: ConfigDict) -> Callable[[jax.Array], Params]:
    """Initializer of the KL-VAE's parameters."""
    size = config.data.image_size
    return initializer(teacher(config), spec(size, size, 3))


def coder_init(config: ConfigDict) -> Callable[[jax.Array], Params]:
    """Initializer of the rectified coder's parameters."""
    size = config.data.image_size
    return initializer(coder(config), spec(size, size, config.coder.model.state_channels), spec())


def bridge_inits(config: ConfigDict) -> dict[str, Callable[[jax.Array], Params]]:
    """Initializers of both halves of the bridge."""
    num_tokens, width = encoder_shape(config)
    compress = bridge_encoder(config)
    return {
        "bridge_encoder": initializer(compress, spec(num_tokens, width)),
        "bridge_decoder": initializer(bridge_decoder(config), spec(num_tokens, compress.latent_channels)),
    }


def feature_stats_init(config: ConfigDict) -> Callable[[jax.Array], Params]:
    """Structure of the statistics of the encoder's tokens."""
    return _statistics_init(encoder_shape(config))


def stats_init(config: ConfigDict) -> Callable[[jax.Array], Params]:
    """Structure of the latent statistics."""
    return _statistics_init(latent_shape(config))


def identity_statistics(structure: Params) -> Params:
    """Statistics of the shapes of `structure` with which `LatentStatistics` leaves every latent as it is."""
    mean, variance = structure["mean"], structure["variance"]
    return {"mean": np.zeros(mean.shape, np.float32), "variance": np.full(variance.shape, 1 - EPSILON, np.float32)}


def _statistics_init(shape: tuple[int, int]) -> Callable[[jax.Array], Params]:
    return lambda key: {"mean": jnp.zeros(shape), "variance": jnp.ones(shape)}


def flow_init(config: ConfigDict, component: str = "flow") -> Callable[[jax.Array], Params]:
    """Initializer of a velocity network's parameters."""
    return initializer(velocity_model(config, component), spec(*latent_shape(config)), spec(), spec(dtype=jnp.int32))


def alignment_init(config: ConfigDict) -> Callable[[jax.Array], Params]:
    """Initializer of the alignment's parameters."""
    tokens, _ = encoder_shape(config)
    return initializer(alignment_projector(config), spec(tokens, config.flow.model.width))


def flow_map_init(config: ConfigDict) -> Callable[[jax.Array], Params]:
    """Initializer of the flow map's parameters."""
    latents, time, labels = spec(*latent_shape(config)), spec(), spec(dtype=jnp.int32)
    return initializer(flow_map_model(config), latents, time, labels, time)


def initializers(config: ConfigDict) -> dict[str, Callable[[jax.Array], Params]]:
    """The initializer of every component whose weights the config may name.

    One that the config does not describe fails only when it is called.
    """
    space = latent_space(config)
    makers = {
        "encoder": encoder_init,
        "lpips": lpips_init,
        "inception": inception_init,
        "discriminator": discriminator_init,
        "stats": stats_init,
        "flow": flow_init,
        "guidance": functools.partial(flow_init, component="guidance"),
        "mid_training": flow_map_init,
        "flow_map": flow_map_init,
    }
    deferred = {name: lambda key, make=make: make(config)(key) for name, make in makers.items()}
    return deferred | space.encoding | space.decoding
