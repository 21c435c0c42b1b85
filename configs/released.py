"""What the papers' releases have in common, filled into an experiment: encoders, latent spaces, sampling."""

from ml_collections import ConfigDict

from configs import architectures
from rae_jax.models.bridge import default_heads
from rae_jax.models.decoder import SIZES as DECODERS
from rae_jax.models.vit import PRETRAINED
from rae_jax.spelling import nearest


def use_pretrained_encoder(config: ConfigDict, name: str) -> None:
    """Fills in `config.encoder` for a published encoder, `name` of `models/vit.py: PRETRAINED`; weights stay empty.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in PRETRAINED:
        known = list(PRETRAINED)
        raise ValueError(f"there is no published encoder {name!r}{nearest(name, known)}; there are {known}")
    published = PRETRAINED[name]
    config.encoder.model = architectures.vision_transformer(**published.architecture)
    config.encoder.input_size = published.input_size
    config.encoder.image_mean = published.mean
    config.encoder.image_std = published.std


def use_rae(config: ConfigDict, encoder: str, image_size: int) -> None:
    """Makes the latent space that of a released RAE: a published encoder, and the ViT-XL decoder of its tokens.

    Images of 256 pixels give 16 x 16 tokens, those of 512 are fed at twice the encoder's size and give 32 x 32.
    """
    use_pretrained_encoder(config, encoder)
    config.data.image_size = image_size
    config.encoder.input_size *= image_size // 256
    config.decoder.model = architectures.vit_decoder(patch_size=16, **DECODERS["xl"])
    config.stats.centred = False


def use_released_sampling(config: ConfigDict, *, points: int) -> None:
    """Samples with Euler on the reference's grid of so many points, as its numbers of steps count."""
    config.sampling.num_steps = points - 1
    config.sampling.grid = "released"


def use_bridge(config: ConfigDict, *, latent_channels: int, depth: int = 6) -> None:
    """Makes the latent space RPiAE's: a bridge for `config.encoder`'s tokens, with a decoder of `depth` layers."""
    width = config.encoder.model.width
    heads = default_heads(width)
    config.autoencoder = "rpiae"
    config.bridge_encoder.model = ConfigDict(dict(latent_channels=latent_channels, num_heads=heads, mlp_dim=width))
    config.bridge_decoder.model = ConfigDict(dict(width=width, depth=depth, num_heads=heads, scan=False, remat="none"))
