"""`diffusers.AutoencoderRAE`, live, encodes and decodes as ours does from its own saved file."""

import json

import jax
import numpy as np
import pytest

from rae_jax.interop.statistics import from_params
from rae_jax.models.autoencoder import RepresentationAutoencoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.vit import VisionTransformer
from tools.convert import import_checkpoint

STD = (0.2, 0.25, 0.3)


# Its SigLIP 2 does not run with transformers 5.
@pytest.mark.parametrize("encoder", ["dinov2", "mae"])
def test_latents_and_images_equal_those_of_the_saved_model(tmp_path, encoder):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    patch = {"dinov2": 14, "mae": 16}[encoder]
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    reference = diffusers.AutoencoderRAE(
        encoder_type=encoder,
        encoder_hidden_size=128,
        encoder_patch_size=patch,
        encoder_num_hidden_layers=2,
        decoder_hidden_size=48,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=64,
        patch_size=8,
        encoder_input_size=4 * patch,
        image_size=32,
        encoder_norm_mean=[0.4, 0.5, 0.6],
        encoder_norm_std=list(STD),
        latents_mean=torch.randn(128, 4, 4, generator=generator),
        latents_std=0.5 + torch.rand(128, 4, 4, generator=generator),
    ).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "layernorm." not in name and "pos_embed" not in name and "position_embeddings" not in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    images = rng.uniform(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        latents = reference.encode(torch.tensor(images).permute(0, 3, 1, 2)).latent
        decoded = reference.decode(latents).sample.permute(0, 2, 3, 1).numpy()
    latents = latents.flatten(2).transpose(1, 2).numpy()
    reference.save_pretrained(tmp_path / "hub")
    heads = json.loads((tmp_path / "hub" / "config.json").read_text())["decoder_num_attention_heads"]
    assert heads == 3  # which the file's config.json tells, and the encoder's not
    model = import_checkpoint("diffusers_rae", str(tmp_path / "hub"), tmp_path / "weights", encoder_heads=2)
    ours = RepresentationAutoencoder(
        VisionTransformer(**model.architecture["encoder"]),
        ViTDecoder(**model.architecture["decoder"]),
        encoder_input_size=4 * patch,
        image_mean=(0.4, 0.5, 0.6),
        image_std=STD,
    )
    params = {part: model.params[part] for part in ("encoder", "decoder")}
    statistics = from_params(model.params["stats"])
    close = {"atol": 1e-4, "rtol": 1e-4}
    actual = jax.jit(lambda p, x: ours.apply({"params": p}, x, statistics, method="encode"))(params, images)
    np.testing.assert_allclose(actual, latents, **close)
    actual = jax.jit(lambda p, z: ours.apply({"params": p}, z, statistics, method="decode"))(params, latents)
    np.testing.assert_allclose(actual, decoded, **close)
