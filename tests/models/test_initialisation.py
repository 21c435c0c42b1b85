"""Parameters start as in the official runs: every kernel and bias is measured against the recipe's own words."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict
from recipe_terms import RECIPES, effective

from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.discriminator import Heads
from rae_jax.models.dit_dh import DiTDH
from rae_jax.models.dit_in_context import DiTInContext
from rae_jax.models.embeddings import sincos_table
from rae_jax.models.lightning_dit import LightningDiT

GRID, CHANNELS, WIDTH = 4, 32, 64
TRANSFORMER = dict(
    grid_size=GRID, in_channels=CHANNELS, num_classes=99, width=WIDTH, depth=1, num_heads=4, trained_tables=True
)
Z, T, LABELS = np.zeros((1, GRID**2, CHANNELS), np.float32), np.zeros(1, np.float32), np.zeros(1, np.int32)
IN_CONTEXT = DiTInContext(
    grid_size=GRID, in_channels=CHANNELS, num_classes=99, width=WIDTH, depth=1, num_heads=4, head_width=96,
    head_depth=1, head_num_heads=4, base_depth=1, alignment_depth=1, alignment_features=48,
)  # fmt: skip
DIT_DH = DiTDH(head_width=96, head_depth=1, head_num_heads=4, **TRANSFORMER)
VIT = ViTDecoder(grid_size=GRID, patch_size=8, width=WIDTH, depth=1, num_heads=4, mlp_dim=128, trained_tables=True)
# Which of the recipe's words a parameter goes by: the first pattern that its path fits.
OF_DIT = {
    r"patch_embedding": ("patch_embeddings", "patch_embedding"), r"label_embedding": ("label_table",),
    r"duration_embedding": ("duration_embedding",), r"frequencies": ("fourier",), r"time_embedding": ("time_mlp",),
    r"modulation": ("modulation",), r"final/linear": ("output_layer",), r"norm": ("norms",),
    r"positions": ("positions",), r"": ("linears",),
}  # fmt: skip
OF_IN_CONTEXT = {r"_tokens": ("learned_tokens",)} | OF_DIT
OF_DECODER = {r"cls_token": ("class_token",), r"positions": ("positions",), r"norm": ("norms",), r"": ("linears",)}
OF_BRIDGE = {
    r"attention/qkv": ("attention_in",), r"attention/out": ("attention_out",), r"^down": ("mlp_last_of_encoder",),
    r"norm": ("norms",), r"": ("other_linears",),
}  # fmt: skip
CASES = [
    ("rae_stage2_dit_dh_xl_256", DIT_DH, (Z, T, LABELS), OF_DIT),
    ("rpiae_lightning_dit", LightningDiT(qk_norm=True, **TRANSFORMER), (Z, T, LABELS), OF_DIT),
    ("raev2_imagenet_k7", IN_CONTEXT, (Z, T, LABELS), OF_IN_CONTEXT),
    ("rae_stage1_dinov2b_december", VIT, (Z,), OF_DECODER),
    (
        "rpiae_stage2",
        BridgeEncoder(latent_channels=16, mlp_dim=WIDTH),
        (np.zeros((1, 16, WIDTH), np.float32),),
        OF_BRIDGE,
    ),
    ("rpiae_stage2", BridgeDecoder(width=WIDTH, depth=1), (np.zeros((1, 16, 16), np.float32),), OF_BRIDGE),
]
NOT_SAID = {"norms": "scale 1, bias 0", "fourier": "normal(0, 1)", "positions": "sine-cosine values"}
NOT_SAID["learned_tokens"] = f"normal(0, {WIDTH**-0.5})"


def parameters(model: Any, arguments: tuple[Any, ...]) -> dict[str, np.ndarray]:
    tree = meta.unbox(jax.jit(model.init)(jax.random.key(0), *arguments)["params"])
    return {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(tree).items()}


def fans(path: str, params: dict[str, np.ndarray]) -> tuple[int, int]:
    """Inputs and outputs of the layer, those of a fused matrix where the reference has one; 1 of what is no layer."""
    kernel = params.get(re.sub(r"bias$", "kernel", path), np.ones((1, 1))).shape
    if not path.endswith(("kernel", "bias")):
        return 1, 1
    if "attention/qkv" in path:
        return kernel[1], kernel[0]
    if len(kernel) == 3:  # a convolution over tokens
        return kernel[0] * kernel[1], kernel[2]
    return kernel[0], kernel[1] * (2 if re.search(r"mlp/(gate|up)", path) else 1)


def expected(words: str, leaf: str, fan_in: int, fan_out: int) -> tuple[str, float]:
    """A distribution and its parameter: of a weight or a bias, from the recipe's words."""
    bias = leaf == "bias"
    if words == "sine-cosine values":
        return "positions", 0.0
    if words.startswith("scale 1"):
        return "constant", 0.0 if bias else 1.0
    if (bias and re.search(r"zero bias|bias 0", words)) or words.startswith("zeros"):
        return "constant", 0.0
    # Words of weights alone leave the bias as that of any linear layer.
    default = "bias PyTorch default" in words or (words.startswith("weight ") and "bias" not in words)
    if (bias and default) or words.startswith(("uniform(-1/sqrt(fan_in)", "PyTorch default")):
        return "uniform", fan_in**-0.5
    if words.startswith("xavier uniform"):
        return "uniform", (6 / (fan_in + fan_out)) ** 0.5
    if deviation := re.search(r"normal\(0, ([0-9.]+)\)", words):
        return "normal", float(deviation[1])
    raise ValueError(f"no distribution in {words!r}")


def assert_drawn_from(values: np.ndarray, kind: str, parameter: float, path: str) -> None:
    if kind == "constant":
        np.testing.assert_array_equal(values, parameter, err_msg=path)
        return
    if kind == "positions":
        side, first = int(len(values) ** 0.5), len(values) % 2
        np.testing.assert_allclose(values, sincos_table(side, values.shape[1], class_token=bool(first)), atol=1e-6)
        return
    deviation = parameter / 3**0.5 if kind == "uniform" else parameter
    tolerance = 4 / (2 * values.size) ** 0.5  # four standard errors of a normal's deviation; a uniform's is smaller
    assert np.std(values) == pytest.approx(deviation, rel=tolerance), path
    assert abs(np.mean(values)) < 4 * deviation / values.size**0.5, path
    if kind == "uniform":
        assert 1 - 10 / values.size < np.abs(values).max() / parameter <= 1 + 1e-6, path
    else:
        assert np.abs(values).max() > 2 * deviation, path


@pytest.mark.parametrize(("recipe", "model", "arguments", "words_of"), CASES)
def test_every_parameter_starts_as_the_recipe_says(recipe, model, arguments, words_of):
    if recipe not in RECIPES:
        pytest.skip(f"no recipe {recipe}")
    said = NOT_SAID | effective(recipe)["initialisation"]
    params = parameters(model, arguments)
    for path, values in params.items():
        names = next(names for pattern, names in words_of.items() if re.search(pattern, path))
        words = next(said[name] for name in names if name in said)
        assert_drawn_from(values, *expected(words, path.rpartition("/")[2], *fans(path, params)), path)


def test_the_embedding_of_the_duration_starts_as_the_recipe_says():
    if "mf_rae_cmt_256" not in RECIPES:
        pytest.skip("no recipe mf_rae_cmt_256")
    words = effective("mf_rae_cmt_256")["initialisation"]["duration_embedding"]
    params = parameters(DIT_DH.clone(flow_map=True), (Z, T, LABELS, T))
    mine = {path: values for path, values in params.items() if path.startswith("duration_embedding")}
    assert len(mine) == 5
    for path, values in mine.items():
        leaf = path.rpartition("/")[2]
        kind, parameter = ("normal", 1.0) if leaf == "frequencies" else expected(words, leaf, *fans(path, params))
        assert_drawn_from(values, kind, parameter, path)


def test_the_heads_of_the_discriminator_start_as_the_recipe_says():
    if "rae_stage1_dinov2b_december" not in RECIPES:
        pytest.skip("no recipe rae_stage1_dinov2b_december")
    words = effective("rae_stage1_dinov2b_december")["discriminator"]["initialisation"]
    params = parameters(Heads(), ([np.zeros((1, 9, 32), np.float32)],))
    for path, values in params.items():
        leaf = path.rpartition("/")[2]
        of_leaf = NOT_SAID["norms"] if "norm" in path else words
        assert_drawn_from(values, *expected(of_leaf, leaf, *fans(path, params)), path)
