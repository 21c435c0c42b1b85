"""The whole tokenizer of RPiAE from and to its official checkpoints.

Stage I: the encoder under training, the frozen encoder it is pivoted on, the decoder. Stages II and III: encoder,
bridge, decoder. A checkpoint of RAE, encoder and decoder alone, has the same form.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop import bridge, decoder, vit
from rae_jax.interop.layout import Rule, Tensors, export_params, import_params
from rae_jax.models.embeddings import sincos_table

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


def under(tensors: Mapping[str, np.ndarray], prefix: str) -> Tensors:
    """The tensors whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def prefixed(rules: list[Rule], official: str, ours: str) -> list[Rule]:
    """The rules with a prefix before every official name and every path of ours."""

    def add(prefix: str, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return prefix + names if isinstance(names, str) else tuple(prefix + name for name in names)

    return [Rule(add(official, rule.official), add(ours, rule.ours), rule.layout) for rule in rules]


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


def positions(architecture: Mapping[str, Mapping[str, Any]]) -> Tensors:
    """The decoder's fixed position table, which the official file holds."""
    table = sincos_table(architecture["decoder"]["grid_size"], architecture["decoder"]["width"], class_token=True)
    return {DECODER + decoder.POSITIONS: table[None]}


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
      ValueError: as `architecture` and `layout.import_params` do; or the position table is not the fixed one, which is
        the only one that `ViTDecoder` computes.
    """
    found = architecture(tensors, encoder_heads, decoder_heads, bridge_heads)
    family, version = identify(tensors)
    pivot = any(name.startswith(PIVOT) for name in tensors)
    unused = [
        re.escape(prefix + ENCODER[family]) + f"(?:{pattern})"
        for prefix in ("", PIVOT)
        for pattern in vit.NAMES[family, version].carried
    ]
    ((table_name, table),) = positions(found).items()
    every_rule = rules(found, family, version, pivot)
    params, carried = import_params(tensors, every_rule, (*unused, re.escape(table_name)), like)
    if not np.allclose(carried[table_name], table, atol=1e-5):
        raise ValueError(f"{table_name} is not the sine-cosine table of its grid")
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
    return export_params(params, every_rule, {**positions(architecture), **(carried or {})})
