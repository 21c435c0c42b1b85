"""`diffusers.AutoencoderRAE` from and to its files: encoder, decoder and latent statistics in one."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop import decoder, statistics, vit
from rae_jax.interop.layout import Rule, Tensors, export_params, import_params, prefixed, under
from rae_jax.interop.model import Model

STATISTICS = ("_latents_mean", "_latents_std")
CARRIED = (*STATISTICS, "encoder_mean", "encoder_std")


def read(
    tensors: Mapping[str, np.ndarray],
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
    grid_size: int | None = None,
) -> Model:
    """A file of the whole autoencoder; the grid is that of the statistics, where they are of tokens."""
    encoder, pixels = under(tensors, "encoder."), under(tensors, "decoder.")
    measured = {name: tensors[name] for name in STATISTICS if name in tensors}
    if grid_size is None and measured and measured["_latents_std"].shape[-1] > 1:
        grid_size = measured["_latents_std"].shape[-1]
    tower = vit.PREFIXES["siglip"]  # within SigLIP's class of transformers 4
    prefix = tower if any(name.startswith(tower) for name in encoder) else ""
    encoder = under(encoder, prefix)
    family, version = vit.identify(encoder)
    architecture = {
        "encoder": vit.architecture(encoder, encoder_heads),
        "decoder": decoder.architecture(pixels, grid_size, decoder_heads),
    }
    unused = [*vit.carried_names(family, version, architecture["encoder"], f"encoder.{prefix}"), *CARRIED]
    params, carried = import_params(tensors, _rules(architecture, family, version, prefix), unused)
    if measured:
        params["stats"] = statistics.as_params(statistics.import_diffusers_statistics(measured))
    return Model(architecture, params, carried, {"family": family, "version": version, "prefix": prefix})


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    params, carried, computed = dict(model.params), dict(model.carried), {}
    if measured := params.pop("stats", None):
        computed = statistics.export_diffusers_statistics(statistics.from_params(measured))
        # Variance and deviation differ in rounding: the file's own are kept as long as they say the same.
        own = {name: carried.pop(name) for name in STATISTICS if name in carried}
        if own and np.array_equal(statistics.import_diffusers_statistics(own).variance, measured["variance"]):
            computed["_latents_std"] = own["_latents_std"]
    return export_params(params, _rules(model.architecture, **model.names), carried | computed)


def _rules(architecture: Mapping[str, Any], family: str, version: int, prefix: str = "") -> list[Rule]:
    rules = prefixed(vit.rules(family, version, architecture["encoder"]), f"encoder.{prefix}", "encoder/")
    return rules + prefixed(decoder.rules("diffusers", architecture["decoder"]), "decoder.", "decoder/")
