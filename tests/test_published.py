"""The configs of what is published are sound, and one of them samples from official files, as a user would."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax.core import meta

from configs import published
from rae_jax.components.catalogue import component
from rae_jax.components.latent_spaces import latent_space
from rae_jax.experiment.configuration import check
from rae_jax.interop.checkpoint_files import write_tensors
from rae_jax.interop.kinds import export_model
from rae_jax.interop.model import Model
from rae_jax.interop.weights import architecture_of
from rae_jax.sampling.generator import flow_map_generator, generator, guiding_component, sample_keys

AUTOENCODERS = [f"{encoder}_{size}" for encoder, size in published.AUTOENCODERS]
WEIGHTS = ("encoder", "decoder", "feature_stats", "bridge_decoder", "stats", "flow", "guide")


def config_of(variant: str):
    """The config and its weights, which are taken out of it: the files are not here."""
    config = published.get_config(variant)
    weights = {name: config[name].weights for name in WEIGHTS}
    for name in WEIGHTS:
        config[name].weights = ""
    check(config, file="configs/published.py", num_devices=1)
    return config, weights


def shapes_of(config, *names: str):
    return {name: component(config, name).structure() for name in names}


@pytest.mark.parametrize("variant", AUTOENCODERS)
def test_a_published_autoencoder_makes_images_of_its_size(variant):
    config, weights = config_of(variant)
    size = int(variant.split("_")[-1])
    space = latent_space(config)
    assert space.shape[0] == (size // 16) ** 2
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    parts = shapes_of(config, "encoder", "decoder")
    decoded = jax.eval_shape(lambda p, x: space.decode(p, space.encode(p, x)), parts, images)
    assert decoded.shape == images.shape
    # As they are published: with the statistics of their own images.
    assert ("512" in weights["stats"]) == ("512" in weights["decoder"]) == (variant == "dinov2_b_512")


@pytest.mark.parametrize("variant", published.GENERATORS)
def test_a_published_generator_makes_images_of_its_size(variant):
    config, weights = config_of(variant)
    guide = guiding_component(config)
    assert (guide == "guide") == bool(weights["guide"]) == variant.startswith(("dit_dh", "rpiae"))
    size = int(variant.split("_")[-1])
    keys, labels = jax.eval_shape(lambda: sample_keys(0, jnp.arange(2))), jax.ShapeDtypeStruct((2,), jnp.int32)
    frozen = shapes_of(config, "stats", *latent_space(config).decoding, *([guide] if guide else []))
    if variant.startswith("mf_rae"):
        params = meta.unbox(jax.eval_shape(component(config, "flow_map").init, jax.random.key(0)))
        generate = flow_map_generator(config, (1.0, 0.5, 0.0))
    else:
        params = shapes_of(config, "flow")["flow"]
        generate = generator(config, guide=guide)
    assert jax.eval_shape(generate, params, frozen, keys, labels).shape == (2, size, size, 3)


def test_an_unknown_variant_is_an_error_that_lists_them():
    with pytest.raises(ValueError, match=r"no variant 'dit_xl'; there are dit_dh_xl_256, .*mae_b_512"):
        published.get_config("dit_xl")


@pytest.mark.slow
def test_official_files_are_sampled_from_without_data_and_without_an_encoder(tmp_path):
    """The published variant at a width of 32: shapes are made small on the command line, and the files with them."""
    small = {"width": 32, "depth": 1, "num_heads": 2, "head_width": 48, "head_depth": 2, "head_num_heads": 2}
    sizes = {
        "encoder.model": {"width": 32, "num_heads": 2},
        "decoder.model": {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48},
        "flow.model": small,
        "guide.model": small | {"width": 16},
    }
    fields = {f"{section}.{name}": value for section, part in sizes.items() for name, value in part.items()}
    config, _ = config_of("dit_dh_xl_256")
    config.update_from_flattened_dict(fields)
    for section in (config.flow, config.guide, config.decoder):
        section.model.scan = False  # exports take blocks one by one
    rng, options = np.random.default_rng(0), [f"--config.{name}={value}" for name, value in fields.items()]
    kinds = {"flow": "dit_dh", "guide": "dit_dh", "decoder": "rae_decoder", "stats": "latent_stats"}
    for name, kind in kinds.items():
        shapes = shapes_of(config, name)[name]
        params = jax.tree.map(lambda x: rng.uniform(0.01, 0.1, x.shape).astype(np.float32), shapes)
        module = component(config, name).module
        model = Model({} if module is None else architecture_of(module), params)
        write_tensors(tmp_path / f"{name}.pt", export_model(kind, model))
        options.append(f"--config.{name}.weights={tmp_path / name}.pt")
    options += ["--mode=sample", "--num_samples=2", "--config.sampling.num_steps=2", "--config.sampling.batch_size=2"]
    status, output = runs.run(tmp_path / "run", *options, config="configs/published.py:dit_dh_xl_256")
    assert status == 0, output
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert samples["arr_0"].shape == (2, 256, 256, 3)

    status, output = runs.run(tmp_path / "none", "--mode=sample", config="configs/published.py:mf_rae_256")
    # Whichever of the files is looked for first.
    assert status != 0 and re.search(r"config\.\w+\.weights='(models/.*)': there is no file or directory \1", output)
