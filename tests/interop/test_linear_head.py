"""DINOv2 with its linear head: files come back bit for bit, and logits are Hugging Face's on random weights."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import architectures, base
from rae_jax.components.encoders import encoder, linear_head
from rae_jax.interop import kinds
from rae_jax.interop.checkpoint_files import write_safetensors
from rae_jax.interop.model import Model
from rae_jax.models.linear_head import LinearHead
from rae_jax.models.vit import VisionTransformer
from tools import convert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 6, "patch_size": 4, "image_size": 12,
    "num_labels": 5, "attn_implementation": "eager",
}  # fmt: skip
IMAGES = np.random.default_rng(0).normal(size=(3, 12, 12, 3)).astype(np.float32)


@functools.cache
def official(family: str):
    """Hugging Face's classifier with random parameters, norms too, and its tensors."""
    torch.manual_seed(0)
    name = {"registers": "Dinov2WithRegisters", "plain": "Dinov2"}[family]
    model = getattr(transformers, f"{name}ForImageClassification")(getattr(transformers, f"{name}Config")(**SMALL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), {name: value.numpy() for name, value in model.state_dict().items()}


def logits(model: Model):
    @jax.jit
    def run(params):
        encoder = VisionTransformer(**model.architecture["encoder"])
        tokens = encoder.apply({"params": params["encoder"]}, IMAGES, class_token=True)
        return LinearHead(**model.architecture["linear_head"]).apply({"params": params["linear_head"]}, tokens)

    return run(model.params)


def in_metas_names(model: Model) -> dict[str, dict[str, np.ndarray]]:
    """The same encoder and head as Meta's two files hold them."""
    backbone = kinds.export_model("dinov2_meta", Model(model.architecture["encoder"], model.params["encoder"]))
    norm, linear = model.params["linear_head"]["norm"], model.params["linear_head"]["linear"]
    backbone |= {"norm.weight": norm["scale"], "norm.bias": norm["bias"]}
    head = {"weight": np.ascontiguousarray(linear["kernel"].T), "bias": linear["bias"]}
    return {"dinov2_vits_reg4_pretrain": backbone, "dinov2_vits_reg4_linear_head": head}


@pytest.mark.parametrize("family", ["registers", "plain"])
def test_logits_are_hugging_faces_and_the_file_comes_back(family):
    network, tensors = official(family)
    assert kinds.identify(tensors) == "dinov2_head"
    model = kinds.import_model("dinov2_head", tensors)
    with torch.no_grad():
        expected = network(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2))).logits.numpy()
    np.testing.assert_allclose(logits(model), expected, atol=2e-4)
    exported = kinds.export_model("dinov2_head", model)
    assert exported.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)


def test_metas_encoder_and_head_are_two_files_that_are_read_together(tmp_path):
    model = kinds.import_model("dinov2_head", official("registers")[1])
    files = in_metas_names(model)
    for name, tensors in files.items():
        write_safetensors(tmp_path / f"{name}.safetensors", tensors)
    sources = ",".join(str(tmp_path / f"{name}.safetensors") for name in files)
    imported = convert.import_checkpoint("dinov2_head", sources, tmp_path / "weights")
    np.testing.assert_allclose(logits(imported), logits(model), atol=1e-5)
    convert.export_checkpoint("dinov2_head", tmp_path / "weights", tmp_path / "again.safetensors")
    exported = kinds.export_model("dinov2_head", imported)
    assert exported.keys() == set().union(*files.values())


def test_one_file_serves_as_the_weights_of_the_encoder_and_of_its_head(tmp_path):
    tensors = official("registers")[1]
    write_safetensors(tmp_path / "model.safetensors", tensors)
    config = base.get_config()
    config.encoder.model = architectures.vision_transformer(
        image_size=12, patch_size=4, width=384, depth=1, num_heads=6, num_registers=4, layer_scale=True,
        position_interpolation="bicubic_antialias",
    )  # fmt: skip
    config.encoder.input_size = 12
    with pytest.raises(ValueError, match=r"linear_head\.model is empty"):
        linear_head(config)
    config.linear_head.model = ConfigDict(dict(num_classes=5))
    head = linear_head(config).load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(head["linear"]["kernel"], tensors["classifier.weight"].T)
    np.testing.assert_array_equal(head["norm"]["bias"], tensors["dinov2_with_registers.layernorm.bias"])
    part = encoder(config)
    assert jax.tree.structure(part.load(tmp_path / "model.safetensors")) == jax.tree.structure(part.structure())
    config.linear_head.model.num_classes = 6
    with pytest.raises(ValueError, match=r"num_classes is 6 in the config, 5 in the file"):
        linear_head(config).load(tmp_path / "model.safetensors")


def test_a_head_of_several_layers_is_refused():
    tensors = official("registers")[1]
    wide = {**tensors, "classifier.weight": np.zeros((5, 5 * 384), np.float32)}
    with pytest.raises(ValueError, match="for 1920 features; the head of one layer has 768"):
        kinds.import_model("dinov2_head", wide)
