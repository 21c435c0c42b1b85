"""Published sizes with random weights against the live reference libraries in PyTorch, from their own files."""

import jax
import numpy as np
import pytest

from rae_jax.interop.kinds import identify, import_model
from rae_jax.models.decoder import SIZES, ViTDecoder
from rae_jax.models.vit import PRETRAINED, VisionTransformer


def randomised(model, keep: tuple[str, ...] = ()):
    """The PyTorch model with weights that keep activations near 1, so that every part of it counts."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in keep:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and not name.endswith(("position_embeddings", "_token", "_tokens")):
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise + (1.0 if name.endswith(("weight", "lambda1")) else 0.0))
    return model.eval()


def tensors_of(model) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def assert_agree(actual: jax.Array, expected: np.ndarray) -> None:
    """Within 1e-4, relative to the largest value and in the mean square."""
    difference = np.asarray(actual) - expected
    assert np.abs(difference).max() < 1e-4 * np.abs(expected).max()
    assert np.linalg.norm(difference) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.slow
def test_a_random_dinov2_b_of_full_size_equals_hugging_face():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(image_size=518, patch_size=14)
    reference = randomised(
        transformers.Dinov2WithRegistersModel(config), keep=("layernorm.weight", "layernorm.bias")
    )  # RAE has the last norm without scale and bias
    images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state[:, 5:].numpy()
    tensors = tensors_of(reference)
    assert identify(tensors) == "dinov2"
    model = import_model("dinov2", tensors)
    published = VisionTransformer(**PRETRAINED["dinov2_b"].architecture)
    assert VisionTransformer(**model.architecture) == published
    assert_agree(jax.jit(published.apply)({"params": model.params}, images), expected)


@pytest.mark.slow
def test_a_random_vit_xl_decoder_of_full_size_equals_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers.models.autoencoders.autoencoder_rae")
    reference = randomised(
        diffusers.RAEDecoder(
            hidden_size=768,
            decoder_hidden_size=1152,
            decoder_num_hidden_layers=28,
            decoder_num_attention_heads=16,
            decoder_intermediate_size=4096,
        )
    )
    z = np.random.default_rng(0).normal(size=(1, 256, 768)).astype(np.float32)
    with torch.no_grad():
        expected = reference.unpatchify(reference(torch.tensor(z)).logits).permute(0, 2, 3, 1).numpy()
    model = import_model("rae_decoder", tensors_of(reference), grid_size=16)
    published = ViTDecoder(grid_size=16, patch_size=16, **SIZES["xl"])
    assert ViTDecoder(**model.architecture) == published
    del reference
    assert_agree(published.apply({"params": model.params}, z), expected)
