"""A run's pipeline, loaded in PyTorch, makes the images that the run makes."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import architectures, digits, digits_rac, digits_rpiae, finetune
from rae_jax.components.catalogue import component, trained_components
from rae_jax.components.latent_spaces import latent_space
from rae_jax.experiment.weights import Weights
from rae_jax.interop import kinds
from rae_jax.interop.checkpoint_files import read_tensors
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.sampling.generator import generator, sample_keys
from tools.pipeline import export_pipeline, main

official_dit = pytest.importorskip("official_dit")
torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")


def run_of(config, workdir):
    """A working directory as `config` leaves it, with random numbers for weights; the components' parameters."""
    plain, rng, params = json.loads(config.to_json_best_effort()), np.random.default_rng(0), {}
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(plain))
    weights = Weights(config, plain, workdir, mesh=None, warn=print)
    for stage in config.stages:
        for name in trained_components(config, stage):
            structure = component(config, name).structure()
            params[name] = jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(np.float32), structure)
            if "variance" in params[name]:
                params[name]["variance"] = np.square(params[name]["variance"]) + 0.5
        trained = {name: params[name] for name in trained_components(config, stage)}
        weights.save(stage, trained if len(trained) > 1 else next(iter(trained.values())), {"seconds": 1.0})
    return params


def photographs():
    """A run that AutoencoderRAE can hold, small as its sizes go: a grid of 16 x 16, two heads of 64 channels."""
    config = finetune.get_config("tiny")
    config.stages, config.flow.num_classes = ("encoder", "decoder", "stats", "flow"), 3
    config.encoder.input_size, config.data.image_size, config.encoder.weights = 224, 32, ""
    config.decoder.weights = ""
    config.encoder.model = architectures.vision_transformer(
        image_size=518, patch_size=14, width=128, depth=1, num_heads=2, num_registers=4, layer_scale=True,
        position_interpolation="bicubic_antialias",
    )  # fmt: skip
    config.decoder.model = architectures.vit_decoder(patch_size=2, width=32, depth=1, num_heads=2, mlp_dim=64)
    return config


def test_diffusers_and_the_official_network_make_the_image_that_the_run_makes(tmp_path):
    config = photographs()
    params = run_of(config, tmp_path / "run")
    contents = export_pipeline(tmp_path / "run", tmp_path / "out", ending=".pt")
    assert contents["left_out"] == {}
    assert {file: about["kind"] for file, about in contents["files"].items()} == {
        "encoder.pt": "dinov2", "decoder.pt": "rae_decoder", "stats.pt": "latent_stats", "flow.pt": "dit_dh",
        "autoencoder": "diffusers.AutoencoderRAE",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "pipeline.json").read_text())["config"]["sampling"]["num_steps"] == 4

    theirs, loading = diffusers.AutoencoderRAE.from_pretrained(tmp_path / "out/autoencoder", output_loading_info=True)
    assert not any(loading.values()), loading
    space, close = latent_space(config), dict(atol=2e-4, rtol=1e-3)
    statistics = LatentStatistics(**params["stats"])
    images = np.random.default_rng(1).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    latents = statistics.normalise(jax.jit(space.encode)(params, images))
    with torch.no_grad():
        encoded = theirs.eval().encode(torch.tensor(images).permute(0, 3, 1, 2)).latent
    np.testing.assert_allclose(encoded.flatten(2).transpose(1, 2), latents, **close)

    config.sampling.guidance_scale = 1.0
    keys, labels = sample_keys(0, jnp.arange(2)), jnp.array([0, 2])
    ours = jax.jit(generator(config))(params["flow"], params, keys, labels)
    noise = jnp.stack([jax.random.normal(jax.random.split(key)[0], space.shape) for key in keys])
    network = torch.load(tmp_path / "out/flow.pt")
    z = torch.tensor(np.asarray(noise)).transpose(1, 2).unflatten(2, (16, 16))
    times = np.linspace(1, 0, 5)
    shift = (256 * 128 / 4096) ** 0.5  # equation 5 of RAE
    times = shift * times / (1 + (shift - 1) * times)
    with torch.no_grad():
        for t, r in itertools.pairwise(times):
            velocity = official_dit.dit_dh(
                network, z, torch.full((2,), t, dtype=torch.float32), torch.tensor([0, 2]), num_heads=(2, 2),
                depth=(1, 1),
            )  # fmt: skip
            z = z - float(t - r) * velocity
        generated = theirs.decode(z).sample.permute(0, 2, 3, 1)
    np.testing.assert_allclose(generated, ours, **close)


def test_the_teacher_of_a_rectified_coder_is_loaded_by_diffusers(tmp_path):
    config = digits_rac.get_config("tiny")
    config.teacher.model.scaling_factor, config.teacher.model.shift_factor = 0.5, 0.25
    params = run_of(config, tmp_path / "run")["teacher"]
    main([str(tmp_path / "run"), f"--output={tmp_path / 'out'}"])
    theirs, loading = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out/autoencoder", output_loading_info=True)
    assert not any(loading.values()), loading
    images = np.random.default_rng(1).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    teacher = component(config, "teacher")
    latents = jax.jit(lambda p, x: teacher.apply(p, x, method="encode").mode())(params, images)
    with torch.no_grad():
        encoded = theirs.encode(2 * torch.tensor(images).permute(0, 3, 1, 2) - 1).latent_dist.mode()
    encoded = (encoded.flatten(2).transpose(1, 2) - theirs.config.shift_factor) * theirs.config.scaling_factor
    np.testing.assert_allclose(encoded, latents, atol=2e-4, rtol=1e-3)


def test_siglip_has_the_names_that_diffusers_gives_it_beside_transformers_4(tmp_path):
    """Where it does not run with 5; the names of the tower's own tensors are the same in both."""
    transformers = pytest.importorskip("transformers")
    config = photographs()
    config.encoder.input_size = 256
    config.encoder.model = architectures.vision_transformer(
        image_size=256, patch_size=16, width=64, depth=1, num_heads=1, mlp_dim=3072, cls_token=False,
        activation="gelu_tanh",
    )  # fmt: skip
    params = run_of(config, tmp_path / "run")
    export_pipeline(tmp_path / "run", tmp_path / "out")
    tower = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(hidden_size=64, num_attention_heads=1, num_hidden_layers=1, image_size=256)
    ).state_dict()
    wanted = {f"encoder.vision_model.{name}": tuple(x.shape) for name, x in tower.items() if "post_layer" not in name}
    tensors = read_tensors(tmp_path / "out/autoencoder")
    assert {name: x.shape for name, x in tensors.items() if name.startswith("encoder.")} == wanted
    assert json.loads((tmp_path / "out/autoencoder/config.json").read_text())["encoder_type"] == "siglip2"
    again = kinds.import_model("diffusers_rae", tensors, encoder_heads=1, decoder_heads=2)
    jax.tree.map(np.testing.assert_array_equal, again.params["encoder"], params["encoder"])


def test_what_no_file_can_hold_is_said_and_the_rest_is_written(tmp_path, capsys):
    run_of(digits.get_config("tiny"), tmp_path / "digits")
    main([str(tmp_path / "digits"), f"--output={tmp_path / 'out'}"])
    assert "left out: autoencoder: diffusers.AutoencoderRAE has no such encoder: " in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {f"{name}.safetensors" for name in ("encoder", "decoder", "stats", "flow", "flow_map")} | {
        "pipeline.json"
    }
    config = digits_rpiae.get_config("tiny")
    run_of(config, tmp_path / "rpiae")
    contents = export_pipeline(tmp_path / "rpiae", tmp_path / "rpiae_out")
    whole = {"kind": "rpiae", "components": ["encoder", "decoder", "bridge_encoder", "bridge_decoder"]}
    assert contents["files"]["rpiae.safetensors"] == whole
    assert "encoder.safetensors" not in contents["files"] and "flow.safetensors" in contents["files"]


def test_nothing_is_written_over_and_of_no_run_nothing_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"is no working directory of a run: there is no config\.json"):
        export_pipeline(tmp_path, tmp_path / "out")
    config = digits.get_config("tiny")
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    with pytest.raises(ValueError, match="has no trained weights yet"):
        export_pipeline(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="is there already"):
        export_pipeline(tmp_path, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json"}
