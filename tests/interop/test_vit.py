"""Encoder checkpoints come back bit for bit, under the names of transformers 4 and 5, and wrong ones are refused."""

import jax
import numpy as np
import pytest
from golden import cases
from golden_modules import heads

from rae_jax.interop import kinds, rpiae
from rae_jax.interop.checkpoint_files import write_safetensors
from rae_jax.interop.vit import architecture, export_encoder, identify, import_encoder
from rae_jax.interop.weights import Origin, load_weights
from rae_jax.models.vit import VisionTransformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "image_size": 12}


def state_dict(model) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def hugging_face(kind: str) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    if kind == "siglip":
        config = transformers.SiglipVisionConfig(**SMALL, intermediate_size=24)
        return state_dict(transformers.SiglipVisionModel(config))
    if kind == "naflex":
        config = transformers.Siglip2VisionConfig(**SMALL, num_patches=9, intermediate_size=24)
        return state_dict(transformers.Siglip2VisionModel(config))
    if kind == "mae":
        return state_dict(transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL, intermediate_size=24)))
    if kind == "dinov2_without_registers":
        return state_dict(transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, qkv_bias=False)))
    config = transformers.Dinov2WithRegistersConfig(**SMALL, use_swiglu_ffn=kind == "dinov2_swiglu")
    return state_dict(transformers.Dinov2WithRegistersModel(config))


def with_names_of_transformers_4(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A gated DINOv2 as published: gate and up are one matrix, gate first."""
    old = {}
    for name, value in tensors.items():
        if ".up_proj." in name:
            continue
        if ".gate_proj." in name:
            value = np.concatenate([value, tensors[name.replace("gate_proj", "up_proj")]])
        for new_part, old_part in {
            "attention.q_proj": "attention.attention.query",
            "attention.k_proj": "attention.attention.key",
            "attention.v_proj": "attention.attention.value",
            "attention.o_proj": "attention.output.dense",
            "mlp.gate_proj": "mlp.weights_in",
            "mlp.down_proj": "mlp.weights_out",
        }.items():
            name = name.replace(new_part, old_part)
        old[name] = value
    return old


def assert_same_files(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@cases("rae_dinov2", "rae_siglip2", "rae_mae", "diffusers_rae")
def test_published_names_come_back_bit_for_bit(case):
    prefix = "encoder." if case.name.startswith("diffusers") else rpiae.ENCODER[rpiae.identify(case.weights)[0]]
    tensors = case.weights_under(prefix)
    family, version = identify(tensors)
    assert version == 4
    found, params, carried = import_encoder(tensors, num_heads=heads(case)["encoder_heads"])
    assert_same_files(export_encoder(params, family, found, carried), tensors)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_swiglu", "dinov2_without_registers", "siglip", "naflex", "mae"])
def test_names_of_transformers_5_come_back_bit_for_bit_and_fit_the_module(kind):
    tensors = hugging_face(kind)
    family, version = identify(tensors)
    found, params, carried = import_encoder(tensors, num_heads=2)
    assert_same_files(export_encoder(params, family, found, carried, version=5), tensors)
    assert version == (4 if family == "siglip" else 5)  # SigLIP's names are the same in both
    images = jax.ShapeDtypeStruct((1, 12, 12, 3), np.float32)
    like = jax.eval_shape(VisionTransformer(**found).init, jax.random.key(0), images)["params"]
    import_encoder(tensors, num_heads=2, like=like)


def test_a_gated_dinov2_of_transformers_4_gives_the_parameters_of_transformers_5():
    new = hugging_face("dinov2_swiglu")
    old = with_names_of_transformers_4(new)
    assert identify(old) == ("dinov2_swiglu", 4)
    assert architecture(old, 2) == architecture(new, 2)
    found, params, carried = import_encoder(old, num_heads=2)
    jax.tree.map(np.testing.assert_array_equal, params, import_encoder(new, num_heads=2)[1])
    assert_same_files(export_encoder(params, "dinov2_swiglu", found, carried), old)


def with_names_of_meta(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """MAE as Meta and timm name it: queries, keys and values in one."""
    new = {
        {"embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed"}.get(name, name): value
        for name, value in tensors.items()
    }
    for side in ("weight", "bias"):
        new[f"patch_embed.proj.{side}"] = new.pop(f"embeddings.patch_embeddings.projection.{side}")
        new[f"norm.{side}"] = new.pop(f"layernorm.{side}")
        for i in range(SMALL["num_hidden_layers"]):
            parts = [new.pop(f"layers.{i}.attention.{part}_proj.{side}") for part in "qkv"]
            new[f"blocks.{i}.attn.qkv.{side}"] = np.concatenate(parts)
            for old, its in {
                "attention.o_proj": "attn.proj", "layernorm_before": "norm1", "layernorm_after": "norm2",
                "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
            }.items():  # fmt: skip
                new[f"blocks.{i}.{its}.{side}"] = new.pop(f"layers.{i}.{old}.{side}")
    return new


def test_mae_under_metas_names_is_the_same_encoder_and_is_not_taken_for_dino(tmp_path):
    theirs = hugging_face("mae")
    tensors = with_names_of_meta(theirs)
    assert not [name for name in tensors if name.startswith(("layers", "embeddings"))]
    found, params, _ = import_encoder(tensors, num_heads=2)
    same, same_params, _ = import_encoder(theirs, num_heads=2)
    assert found == same
    jax.tree.map(np.testing.assert_array_equal, params, same_params)
    whole = tensors | {"decoder_blocks.0.norm1.weight": np.ones(8, np.float32), "mask_token": np.ones(8, np.float32)}
    assert kinds.identify(whole, VisionTransformer) == "mae_meta"
    model = kinds.import_model("mae_meta", whole, num_heads=2)
    assert_same_files(kinds.export_model("mae_meta", model), whole)
    write_safetensors(tmp_path / "mae.safetensors", whole)
    read = load_weights(tmp_path / "mae.safetensors", params, Origin("encoder", "it"), VisionTransformer(**found))
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_an_unpublished_width_needs_the_number_of_heads():
    with pytest.raises(ValueError, match="width 16; give num_heads"):
        architecture(hugging_face("mae"))


def test_a_file_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no known encoder"):
        identify({"vit.embeddings.cls_token": 0, "decoder.weight": 0})


def test_a_missing_and_an_unexpected_tensor_are_both_named():
    tensors = hugging_face("mae")
    tensors["embeddings.cls_tokem"] = tensors.pop("embeddings.cls_token")
    with pytest.raises(ValueError, match=r"(?s)missing.*cls_token.*unexpected.*cls_tokem"):
        import_encoder(tensors, num_heads=2)
