"""Image-text scores against transformers' SigLIP with random weights, and refusals."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import SiglipConfig, SiglipModel

from tools import image_text_score
from tools.image_text_score import main

WORDS = ["<pad>", "<eos>", "<unk>", "a", "red", "blue", "seven", "three"]
PROMPTS = ["A red seven", "a blue three", "seven seven seven seven seven seven seven seven red"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("siglip")
    sizes = dict(intermediate_size=48, num_hidden_layers=2, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh")
    text = dict(vocab_size=8, hidden_size=24, num_attention_heads=2, max_position_embeddings=6, projection_size=32)
    vision = dict(hidden_size=32, num_attention_heads=4, image_size=28, patch_size=7)
    torch.manual_seed(0)
    special = dict(bos_token_id=1, eos_token_id=1, pad_token_id=0)
    theirs = SiglipModel(SiglipConfig(text_config=text | sizes | special, vision_config=vision | sizes)).eval()
    for parameter in theirs.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    theirs.save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory, theirs


def test_scores_are_transformers(model, tmp_path):
    directory, theirs = model
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=images, prompts=PROMPTS)
    main([str(tmp_path / "samples.npz"), f"--model={directory}", f"--output={tmp_path / 's.json'}", "--batch_size=2"])
    found = json.loads((tmp_path / "s.json").read_text())
    ids = torch.tensor([[3, 4, 6, 1, 0, 0], [3, 5, 7, 1, 0, 0], [6, 6, 6, 6, 6, 1]])
    pixels = torch.tensor(images.transpose(0, 3, 1, 2) / 127.5 - 1).float()
    with torch.no_grad():
        out = theirs(input_ids=ids, pixel_values=pixels)
    cosines = 100 * (out.image_embeds * out.text_embeds).sum(-1)
    probabilities = torch.sigmoid(out.logits_per_image.diagonal())
    np.testing.assert_allclose(found["each"]["image_text_cosine"], cosines, atol=1e-3)
    np.testing.assert_allclose(found["each"]["image_text_probability"], probabilities, atol=1e-5)
    assert found["image_text_cosine"] == pytest.approx(float(cosines.mean()), abs=1e-3)


def test_images_of_another_size_are_resized_as_pillow_does_it(model, tmp_path, monkeypatch):
    from PIL import Image

    directory, _ = model
    smooth = np.kron(np.random.default_rng(1).integers(0, 256, (1, 7, 7, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    small = np.asarray(Image.fromarray(smooth[0]).resize((28, 28), Image.Resampling.BILINEAR))[None]
    for name, images in {"large": smooth, "small": small}.items():
        np.savez(tmp_path / f"{name}.npz", arr_0=images, prompts=PROMPTS[:1])
    large, small = (image_text_score.scores(tmp_path / f"{n}.npz", str(directory), 1) for n in ("large", "small"))
    np.testing.assert_allclose(large["image_text_cosine"], small["image_text_cosine"], atol=0.1)  # 8 bits


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(arr_0=np.zeros((2, 8, 8, 3), np.uint8)), "has no prompts"),
        (dict(arr_0=np.zeros((2, 8, 8, 3), np.uint8), prompts=["a"]), "1 prompts for 2 images"),
    ],
)
def test_samples_without_their_prompts_are_refused(arrays, message, model, tmp_path):
    np.savez(tmp_path / "samples.npz", **arrays)
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path / "samples.npz"), f"--model={model[0]}"])


def test_another_model_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((1, 8, 8, 3), np.uint8), prompts=["a"])
    with pytest.raises(SystemExit, match=r"vision_model\.head\.probe"):
        main([str(tmp_path / "samples.npz"), f"--model={tmp_path}"])
