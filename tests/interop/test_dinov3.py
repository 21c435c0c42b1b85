"""DINOv3 checkpoints come back bit for bit, under both kinds of names, and wrong ones are refused."""

import jax
import numpy as np
import pytest

from rae_jax.interop.vit import architecture, export_encoder, identify, import_encoder
from rae_jax.interop.vit_names import NUM_HEADS
from rae_jax.models.vit import PRETRAINED, VisionTransformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def hugging_face(**options) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, patch_size=4, **options
    )
    return {name: value.numpy() for name, value in transformers.DINOv3ViTModel(config).state_dict().items()}


def published(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As in the files that are published: the stack of blocks has no name of its own."""
    return {name.replace("model.layer.", "layer."): value for name, value in tensors.items()}


def assert_same_files(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {"num_register_tokens": 4},
        {"num_register_tokens": 0, "use_gated_mlp": True, "key_bias": True},
        {"query_bias": False, "value_bias": False},
    ],
)
def test_both_kinds_of_names_come_back_bit_for_bit_and_fit_the_module(options):
    new = hugging_face(**options)
    old = published(new)
    family = "dinov3_swiglu" if options.get("use_gated_mlp") else "dinov3"
    assert (identify(new), identify(old)) == ((family, 5), (family, 4))
    found, params, carried = import_encoder(new, num_heads=2)
    assert_same_files(export_encoder(params, family, found, carried, version=5), new)
    same, same_params, _ = import_encoder(old, num_heads=2)
    assert found == same
    jax.tree.map(np.testing.assert_array_equal, params, same_params)
    assert_same_files(export_encoder(params, family, found, carried), old)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    like = jax.eval_shape(VisionTransformer(**found).init, jax.random.key(0), images)["params"]
    import_encoder(new, num_heads=2, like=like)


def test_published_heads_are_64_wide_and_other_widths_need_their_number():
    sizes = [PRETRAINED[name].architecture for name in ("dinov3_s", "dinov3_b", "dinov3_l")]
    assert all(NUM_HEADS[size["width"]] == size["num_heads"] == size["width"] // 64 for size in sizes)
    with pytest.raises(ValueError, match="width 16; give num_heads"):
        architecture(hugging_face())


def test_a_missing_and_an_unexpected_tensor_are_both_named():
    tensors = hugging_face()
    tensors["model.layer.0.norm1.wait"] = tensors.pop("model.layer.0.norm1.weight")
    tensors["model.layer.0.norm1.weight"] = tensors["model.layer.1.norm1.weight"]
    del tensors["model.layer.1.norm2.bias"]
    with pytest.raises(ValueError, match=r"(?s)missing.*layer.1.norm2.bias.*unexpected.*norm1.wait"):
        import_encoder(tensors, num_heads=2)


def test_a_file_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no known encoder"):
        identify({"embeddings.cls_token": 0, "encoder.layer.0.norm1.weight": 0})
