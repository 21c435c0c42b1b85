"""An experiment's encoder and decoder as one module, for tests that look at what is between."""

from ml_collections import ConfigDict

from rae_jax.components.decoders import decoder
from rae_jax.components.encoders import around, encoder
from rae_jax.models.autoencoder import RepresentationAutoencoder


def autoencoder(config: ConfigDict) -> RepresentationAutoencoder:
    """`apply({"params": {"encoder": p, "decoder": q}}, x, method=...)`."""
    return around(config, encoder=encoder(config), decoder=decoder(config))
