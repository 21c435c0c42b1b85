"""timm's encoder files are the same encoders as Hugging Face's, come back bit for bit, and have the published heads."""

import jax
import numpy as np
import pytest

from rae_jax.interop import kinds
from rae_jax.interop.layout import unstack_blocks
from rae_jax.interop.vit import import_encoder
from rae_jax.interop.vit_names import published_heads
from rae_jax.models.vit import VisionTransformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "image_size": 12}
# Hugging Face's name of transformers 5 and timm's, of what is one tensor in both.
DINO = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "model.layer": "blocks",
    "encoder.layer": "blocks",
    "layernorm": "norm",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.down_proj": "mlp.fc2",
}
DINOV3 = DINO | {
    "layer_scale1.lambda1": "gamma_1",
    "layer_scale2.lambda1": "gamma_2",
    "mlp.gate_proj": "mlp.fc1_g",
    "mlp.up_proj": "mlp.fc1_x",
}
SIGLIP = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "encoder.layers": "blocks",
    "layer_norm": "norm",
    "self_attn.out_proj": "attn.proj",
    "post_layernorm": "norm",
    "head.probe": "attn_pool.latent",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp": "attn_pool.mlp",
}


def hugging_face(kind: str) -> dict[str, np.ndarray]:
    """A random model's tensors, none of them what it is when a model is made."""
    torch.manual_seed(0)
    if kind == "siglip":
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL, intermediate_size=24))
    elif kind.startswith("dinov3"):
        options = {"key_bias": False, "query_bias": "bias" in kind, "value_bias": "bias" in kind}
        config = transformers.DINOv3ViTConfig(
            **SMALL, num_register_tokens=4, intermediate_size=24, use_gated_mlp="gated" in kind, **options
        )
        model = transformers.DINOv3ViTModel(config)
    else:
        config = transformers.Dinov2WithRegistersConfig(**SMALL, use_swiglu_ffn=kind == "dinov2_gated")
        model = transformers.Dinov2WithRegistersModel(config)
    random = np.random.default_rng(0)
    return {
        name: value.numpy() + random.normal(0, 0.2, value.shape).astype(np.float32)
        for name, value in model.state_dict().items()
        if value.is_floating_point() and "inv_freq" not in name
    }


def timm(kind: str) -> dict[str, np.ndarray]:
    """The same encoder as timm has it."""
    theirs, renamed = hugging_face(kind), {"dinov2": DINO, "dinov3": DINOV3, "siglip": SIGLIP}[kind.split("_")[0]]
    result = {}
    for name, value in theirs.items():
        for old, new in renamed.items():
            name = name.replace(old, new) if old in name else name
        result[name] = value
    for i in range(2):
        projections = "attention.{}_proj" if f"blocks.{i}.attention.q_proj.weight" in result else "self_attn.{}_proj"
        names = [f"blocks.{i}.{projections.format(part)}" for part in "qkv"]
        result[f"blocks.{i}.attn.qkv.weight"] = np.concatenate([result.pop(f"{name}.weight") for name in names])
        biases = [result.pop(f"{name}.bias", None) for name in names]
        if all(bias is not None for bias in biases):
            result[f"blocks.{i}.attn.qkv.bias"] = np.concatenate(biases)
        elif biases[0] is not None:
            result[f"blocks.{i}.attn.q_bias"], result[f"blocks.{i}.attn.v_bias"] = biases[::2]
        for side in ("weight", "bias"):
            if kind == "dinov2_gated":
                parts = [result.pop(f"blocks.{i}.mlp.{part}_proj.{side}") for part in ("gate", "up")]
                result[f"blocks.{i}.mlp.fc1.{side}"] = np.concatenate(parts)
            elif kind.startswith("dinov3") and "gated" not in kind:
                result[f"blocks.{i}.mlp.fc1.{side}"] = result.pop(f"blocks.{i}.mlp.fc1_x.{side}")
    if kind.startswith("dinov2"):
        position = result.pop("embeddings.position_embeddings")
        result["cls_token"], result["pos_embed"] = result["cls_token"] + position[:, :1], position[:, 1:]
    if kind.startswith("dinov"):
        del result["embeddings.mask_token"]
    if kind == "siglip":
        result["pos_embed"] = result.pop("embeddings.position_embedding.weight")[None]
        weight, bias = (result.pop(f"head.attention.in_proj_{side}") for side in ("weight", "bias"))
        result |= {"attn_pool.q.weight": weight[:16], "attn_pool.kv.weight": weight[16:]}
        result |= {"attn_pool.q.bias": bias[:16], "attn_pool.kv.bias": bias[16:]}
    assert not [name for name in result if name.startswith(("embeddings", "head", "encoder", "model"))]
    return result


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_gated", "dinov3", "dinov3_bias", "dinov3_gated", "siglip"])
def test_timms_files_are_the_encoders_of_hugging_face_and_come_back_bit_for_bit(kind):
    tensors = timm(kind)
    name = kinds.identify(tensors, VisionTransformer)
    assert name == f"{kind.split('_')[0]}_timm"
    model = kinds.import_model(name, tensors, num_heads=2)
    again = kinds.export_model(name, model)
    assert again.keys() == tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, again, tensors)

    found, params, _ = import_encoder(hugging_face(kind), num_heads=2)
    assert model.architecture == found
    images = np.random.default_rng(1).normal(size=(2, 12, 12, 3)).astype(np.float32)
    ours, theirs = (VisionTransformer(**found).apply({"params": p}, images) for p in (model.params, params))
    # The token and its position are added in another order.
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_siglip_of_openclip_has_the_tower_under_its_own_prefix_and_keeps_the_text_tower():
    inner = timm("siglip")
    whole = {f"visual.trunk.{name}": value for name, value in inner.items()}
    whole |= {"text.ln_final.weight": np.ones(4, np.float32), "logit_scale": np.ones((), np.float32)}
    assert kinds.identify(whole, VisionTransformer) == "siglip_timm"
    model = kinds.import_model("siglip_timm", whole, num_heads=2)
    jax.tree.map(
        np.testing.assert_array_equal, model.params, kinds.import_model("siglip_timm", inner, num_heads=2).params
    )
    assert kinds.export_model("siglip_timm", model).keys() == whole.keys()


def test_an_encoder_that_was_not_imported_is_written_as_timm_would():
    found, params, _ = import_encoder(hugging_face("dinov2"), num_heads=2)
    written = kinds.export_model("dinov2_timm", kinds.Model(found, unstack_blocks(params)))
    expected = timm("dinov2") | {"norm.weight": np.ones(16, np.float32), "norm.bias": np.zeros(16, np.float32)}
    assert written.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, written, expected)


HEADS = {
    ("dinov2", 1536): 24,
    ("dinov2", 4096): None,
    ("dinov3_swiglu", 1280): 20,
    ("dinov3_meta_swiglu", 4096): 32,
    ("mae", 1280): 16,
    ("siglip", 1536): 16,
    ("siglip_timm", 1536): 16,
}


@pytest.mark.parametrize("family, width", HEADS)
def test_encoders_of_one_width_have_their_own_familys_number_of_heads(family, width):
    assert published_heads(family, width) == HEADS[family, width]
