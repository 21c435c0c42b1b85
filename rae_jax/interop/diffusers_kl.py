"""The KL-VAE from and to `diffusers.AutoencoderKL`, with the attention's names of today or those of older files."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rae_jax.interop.layout import (
    CONV,
    IDENTITY,
    LINEAR,
    Layout,
    Rule,
    Tensors,
    bias_to_heads,
    export_params,
    import_params,
    linear_from_heads,
    linear_to_heads,
)

# Where the attention's projections are, by the age of the names.
ATTENTION = {
    "current": {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
    "deprecated": {"query": "query", "key": "key", "value": "value", "out": "proj_attn"},
}
# Convolution [out, in, 1, 1] <-> Dense kernel [in, out].
POINTWISE = LINEAR.then(IDENTITY)
POINTWISE = Layout(lambda w: w[:, :, 0, 0].transpose(1, 0), lambda w: w.transpose(1, 0)[:, :, None, None])
