"""The rules between official tensors and our parameters: exact inverses, and errors that list everything."""

import numpy as np
import pytest
from flax import linen as nn

from rae_jax.interop.layout import (
    CONV,
    IDENTITY,
    LINEAR,
    ROTARY,
    Layout,
    Rule,
    export_params,
    fused,
    import_params,
    patch_embedding,
    stack_blocks,
    stacked,
    to_heads,
    unstack_blocks,
    without_leading,
)

HEADS, E, D = 3, 6, 5
LAYOUTS = {
    "identity": (IDENTITY, (2, 3), (2, 3)),
    "linear": (LINEAR, (7, D), (D, 7)),
    "convolution": (CONV, (7, D, 3, 2), (3, 2, D, 7)),
    "convolution_1d": (CONV, (7, D, 9), (9, D, 7)),
    "rotary": (ROTARY, (E, D), (E, D)),
    "to_heads": (stacked(to_heads(HEADS)), (3 * HEADS * E, D), (HEADS * 3 * E, D)),
    "to_heads_rotary": (stacked(to_heads(HEADS, rotary=True)), (3 * HEADS * E, D), (HEADS * 3 * E, D)),
    "bias_to_heads": (stacked(to_heads(HEADS, rotary=True)), (3 * HEADS * E,), (HEADS, 3, E)),
    "bias_to_heads_without_keys": (stacked(to_heads(HEADS, parts=2), 2), (2 * HEADS * E,), (HEADS, 2, E)),
    "patch_embedding": (patch_embedding(2), (D, 3, 2, 2), (12, D)),
    "without_leading": (without_leading(2), (1, 1, D), (D,)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_the_stated_shape_and_an_exact_inverse(name):
    layout, official_shape, our_shape = LAYOUTS[name]
    official = np.arange(np.prod(official_shape)).reshape(official_shape)
    ours = layout.to_flax(official)
    assert ours.shape == our_shape
    assert sorted(ours.ravel()) == sorted(official.ravel())
    np.testing.assert_array_equal(layout.to_torch(ours), official)


def test_heads_are_consecutive_rows_and_rotary_puts_even_channels_of_queries_and_keys_before_odd_ones():
    query, key, value = np.split(np.arange(3 * HEADS * E)[:, None], 3)  # row number, one input
    ours = to_heads(HEADS, rotary=True).to_flax(query, key, value).reshape(HEADS, 3, E)
    np.testing.assert_array_equal(ours[:, 0], [[0, 2, 4, 1, 3, 5], [6, 8, 10, 7, 9, 11], [12, 14, 16, 13, 15, 17]])
    np.testing.assert_array_equal(ours[:, 1], ours[:, 0] + HEADS * E)
    np.testing.assert_array_equal(ours[:, 2].ravel(), value[:, 0])


def test_patch_embedding_is_the_convolution_on_patches_flattened_row_column_channel():
    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(D, 3, 2, 2)), rng.normal(size=(2, 2, 3))
    expected = np.einsum("dcpq,pqc->d", kernel, patch)
    np.testing.assert_allclose(patch.reshape(-1) @ patch_embedding(2).to_flax(kernel), expected)


def rules():
    return [
        Rule("fc.weight", "fc/kernel", LINEAR),
        Rule("w12.weight", ("gate/kernel", "up/kernel"), fused(LINEAR, LINEAR)),
        Rule(("a", "b"), "pair", Layout(lambda a, b: np.stack([a, b]), lambda pair: (pair[0], pair[1]))),
    ]


def tensors():
    rng = np.random.default_rng(0)
    shapes = {"fc.weight": (3, 2), "w12.weight": (8, 2), "a": (4,), "b": (4,), "rope.cos": (5,)}
    return {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}


def test_import_and_export_are_inverse_bit_for_bit_with_what_is_carried():
    params, carried = import_params(tensors(), rules(), carried=(r"rope\..*",))
    assert params["gate"]["kernel"].shape == (2, 4)
    assert set(carried) == {"rope.cos"}
    back = export_params(params, rules(), carried)
    assert back.keys() == tensors().keys()
    for name, w in tensors().items():
        assert back[name].dtype == w.dtype
        assert back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], w)


def test_one_error_lists_every_missing_unexpected_and_misshapen_tensor_with_near_names():
    wrong = tensors() | {"fc.weigth": tensors()["fc.weight"], "w12.weight": np.zeros((7, 2)), "extra": np.zeros(2)}
    del wrong["fc.weight"]
    with pytest.raises(ValueError) as error:
        import_params(wrong, rules())
    lines = sorted(line.strip() for line in str(error.value).splitlines()[1:])
    assert lines == [
        "misshapen  w12.weight: (7, 2)",
        "missing    fc.weight; nearest: fc.weigth",
        "unexpected extra (2,)",
        "unexpected fc.weigth (3, 2); nearest: fc.weight",
        "unexpected rope.cos (5,)",
    ]


def test_import_compares_with_the_modules_own_parameters():
    like = {"fc": {"kernel": np.zeros((2, 4))}, "gate": {"kernel": np.zeros((2, 4))}, "pair": np.zeros((2, 4))}
    like["bias"] = np.zeros(3)
    with pytest.raises(ValueError) as error:
        import_params(tensors(), rules(), carried=(r"rope\..*",), like=like)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert lines == [
        "misshapen  fc/kernel: (2, 3), the model has (2, 4) (from fc.weight)",
        "no rule for parameter bias (3,)",
        "unexpected up/kernel (2, 4) (from w12.weight); nearest: fc/kernel",
    ]


def test_export_refuses_parameters_without_a_rule_and_rules_without_a_parameter():
    with pytest.raises(ValueError, match=r"(?s)missing    gate/kernel.*unexpected other \(1,\)"):
        export_params({"fc": {"kernel": np.zeros((2, 3))}, "other": np.zeros(1)}, rules())


def test_export_takes_parameters_with_axis_names():
    params, _ = import_params(tensors(), rules(), carried=(r"rope\..*",))
    params["fc"]["kernel"] = nn.LogicallyPartitioned(params["fc"]["kernel"], ("embed", "mlp"))
    np.testing.assert_array_equal(export_params(params, rules())["fc.weight"], tensors()["fc.weight"])


def test_stacking_blocks_is_the_inverse_of_unstacking_them_at_any_depth():
    def block(i):
        return {"mlp": {"kernel": np.full((2, 3), i)}, "scale": np.full(3, -i)}

    unrolled = {
        "encoder": {f"blocks_{i}": block(i) for i in range(11)} | {"bias": np.ones(2)},
        "head_blocks_0": block(5),
    }
    structure = {"encoder": {"blocks": None, "bias": None}, "head_blocks": None}
    stacked = stack_blocks(unrolled, structure)
    assert stacked.keys() == {"encoder", "head_blocks"}
    np.testing.assert_array_equal(stacked["encoder"]["blocks"]["scale"][:, 0], -np.arange(11))
    back = unstack_blocks(stacked)
    assert back.keys() == unrolled.keys()
    assert back["encoder"].keys() == unrolled["encoder"].keys()
    for name, w in unrolled["encoder"].items():
        np.testing.assert_equal(back["encoder"][name], w)
    np.testing.assert_equal(stack_blocks(unrolled, unrolled), unrolled)
