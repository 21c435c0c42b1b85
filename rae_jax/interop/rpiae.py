"""The whole tokenizer of RPiAE from and to its official checkpoints.

Stage I: the encoder under training, the frozen encoder it is pivoted on, the decoder. Stages II and III: encoder,
bridge, decoder. A checkpoint of RAE, encoder and decoder alone, has the same form.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rae_jax.interop import bridge, decoder, vit
from rae_jax.interop.layout import Rule, Tensors, export_params, import_params, prefixed, require, under
from rae_jax.interop.model import Model

# Where the encoder is, by family: the reference wraps each kind under another name.
ENCODER = {
    "dinov2": "encoder.encoder.",
    "dinov2_swiglu": "encoder.encoder.",
    "siglip": "encoder.model.",
    "mae": "encoder.model.",
}
DECODER = "decoder."
# The encoder as it was at the start, in stage I.
PIVOT = "teacher_"


def identify(tensors: Mapping[str, np.ndarray]) -> tuple[str, int]:
    """The family of the encoder and the major version of transformers whose names it has, as in `interop.vit`.

    Raises:
      ValueError: there is no known encoder.
    """
    for prefix in dict.fromkeys(ENCODER.values()):
        if encoder := under(tensors, prefix):
            return vit.identify(encoder)
    raise ValueError(
        f"no tokenizer of RPiAE: no tensor is under {' or '.join(sorted(set(ENCODER.values())))}; "
        f"the first names are {sorted(tensors)[:5]}"
    )


def architecture(
    tensors: Mapping[str, np.ndarray],
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
    bridge_heads: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Arguments of the modules: `encoder`, `decoder`, and with a bridge `bridge_encoder` and `bridge_decoder`.

    Heads are needed for an encoder or decoder whose width is no published one, and for a bridge that has not the
    default number.

    Raises:
      ValueError: as the functions of that name of the parts do.
    """
    family, _ = identify(tensors)
    found = {
        "encoder": vit.architecture(under(tensors, ENCODER[family]), encoder_heads),
        "decoder": decoder.architecture(under(tensors, DECODER), num_heads=decoder_heads),
    }
    if any(name.startswith((bridge.ENCODER, bridge.DECODER)) for name in tensors):
        found |= bridge.architecture(tensors, bridge_heads)
    return found


def rules(architecture: Mapping[str, Mapping[str, Any]], family: str, version: int, pivot: bool) -> list[Rule]:
    """The rules of one tokenizer; `architecture` as from the function of that name, `pivot` whether it has one."""
    encoder = vit.rules(family, version, architecture["encoder"])
    result = prefixed(encoder, ENCODER[family], "encoder/")
    result += prefixed(encoder, PIVOT + ENCODER[family], "pivot/") if pivot else []
    result += prefixed(decoder.rules("official", architecture["decoder"]), DECODER, "decoder/")
    return result + (bridge.rules(architecture) if "bridge_encoder" in architecture else [])


def import_rpiae(
    tensors: Mapping[str, np.ndarray],
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
    bridge_heads: int | None = None,
    like: Any = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], Tensors]:
    """`(arguments of the modules, their parameters with unrolled blocks, carried tensors)`.

    The parameters are under the same names as the arguments, and in stage I under `pivot` too: those of the frozen
    encoder, which is built as the encoder is.

    Raises:
      ValueError: as `architecture` and `layout.import_params` do.
    """
    found = architecture(tensors, encoder_heads, decoder_heads, bridge_heads)
    family, version = identify(tensors)
    pivot = any(name.startswith(PIVOT) for name in tensors)
    unused = [
        pattern
        for prefix in ("", PIVOT)
        for pattern in vit.carried_names(family, version, found["encoder"], prefix + ENCODER[family])
    ]
    every_rule = rules(found, family, version, pivot)
    params, carried = import_params(
        tensors, every_rule, (*unused, *decoder.carried_names(found["decoder"], DECODER)), like
    )
    return found, params, carried


def export_rpiae(
    params: Mapping[str, Any],
    architecture: Mapping[str, Mapping[str, Any]],
    carried: Mapping[str, np.ndarray] | None = None,
    family: str = "dinov2",
    version: int = 4,
) -> Tensors:
    """The inverse of `import_rpiae`, for parameters with unrolled blocks; `family` and `version` as from `identify`.

    Without the imported position table in `carried` it is computed.
    """
    every_rule = rules(architecture, family, version, pivot="pivot" in params)
    return export_params(params, every_rule, decoder.positions(architecture["decoder"], DECODER) | dict(carried or {}))


def reader(with_bridge: bool) -> Callable[..., Model]:
    """Reads the tokenizers that have a bridge, or those that have none."""

    def read(tensors: Mapping[str, np.ndarray], **heads: int) -> Model:
        require(tensors, DECODER + decoder.POSITIONS)
        found, params, carried = import_rpiae(tensors, **heads)
        if ("bridge_encoder" in found) != with_bridge:
            raise ValueError(f"there is {'no' if with_bridge else 'a'} variational bridge in it")
        family, version = identify(tensors)
        return Model(found, params, carried, {"family": family, "version": version})

    return read


def write(model: Model) -> Tensors:
    """The inverse of what `reader` does; an encoder that was not imported gets the mask token that a file must have."""
    names, carried = dict(model.names), dict(model.carried)
    if not names:
        kind = vit.kind_of(model.architecture["encoder"])
        names = {
            "family": kind + "_swiglu" * (model.architecture["encoder"].get("activation") == "swiglu"),
            "version": 4,
        }
        if kind == "dinov2":
            width = model.architecture["encoder"]["width"]
            carried[ENCODER["dinov2"] + "embeddings.mask_token"] = np.zeros((1, width), np.float32)
    return export_rpiae(model.params, model.architecture, carried, **names)
