"""The cache of the digits' latents, against the encoder called by hand, and training on it, against the images."""

import json
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from random_params import random_state, random_weights
from whole_autoencoder import autoencoder

from configs import digits
from rae_jax.components.catalogue import component
from rae_jax.components.component import RANDOM
from rae_jax.data import latents
from rae_jax.data.digits import digits as digits_of
from rae_jax.data.latents import LatentSource
from rae_jax.experiment.configuration import check
from rae_jax.experiment.latent_writer import share_of, write_cache
from rae_jax.experiment.stages import open_batches, open_sources
from rae_jax.experiment.workdir import ConfigError
from rae_jax.interop.weights import save_weights
from rae_jax.objectives.catalogue import OBJECTIVES

FILE = "configs/digits.py:tiny"
SHARD_BYTES = 300_000  # five shards of digits
ROUNDING = 2.0**-7  # of bfloat16, relative, and as much again for batches of another size


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A weights directory, and what is in it."""
    directory = tmp_path_factory.mktemp("encoder") / "weights"
    params = random_weights(component(digits.get_config("tiny"), "encoder"))
    save_weights(directory, params, {"component": "encoder", "config": {}})
    return directory, params


def config_for(encoder, cache="", **fields):
    """The tiny digits with a given encoder, statistics that change nothing, and flips."""
    config = digits.get_config("tiny")
    config.stages = ("flow",)
    config.encoder.weights = str(encoder[0])
    config.stats.weights = "identity"
    config.flow_map.initial = "flow"
    config.flow.train.transform = config.flow_map.train.transform = "center_crop_flip"
    config.data.latents = str(cache)
    config.sampling.num_steps = 0  # no samples, whose generation a check would trace
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


@pytest.fixture(scope="module")
def cache(encoder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("cached") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "SHARD_BYTES", SHARD_BYTES)
        write_cache(config_for(encoder), FILE, directory.parent / "run", directory)
    return directory


def test_it_holds_what_the_encoder_makes_of_each_image_and_of_its_mirror_image(cache, encoder):
    source, data = LatentSource(cache), digits_of("train")
    model = autoencoder(digits.get_config("tiny"))
    tokens = jax.jit(lambda x: model.apply({"params": {"encoder": encoder[1]}}, x, method="tokens"))
    assert source.description.shards == 5 and len(source) == len(data) == 1438
    images = data.images.astype(np.float32) / 255
    for mirrored, expected in ((False, tokens(images)), (True, tokens(np.flip(images, axis=2)))):
        found = [source.read(i, mirrored=mirrored) for i in range(len(source))]
        stacked = np.stack([element["latent"] for element in found]).astype(np.float32)
        np.testing.assert_allclose(stacked, expected, rtol=ROUNDING, atol=1e-5)
        np.testing.assert_array_equal([element["label"] for element in found], data.labels)
    assert np.abs(stacked - tokens(images)).max() > 0.1  # an image and its mirror image differ


@pytest.mark.parametrize("stage", ["flow", "flow_map"])
def test_a_step_on_a_batch_of_the_cache_is_the_step_on_the_images_and_needs_no_encoder(cache, encoder, stage):
    frozen = {
        "encoder": encoder[1],
        "stats": {"mean": jnp.zeros((16, 16)), "variance": jnp.ones((16, 16))},
        "flow": random_weights(component(digits.get_config("tiny"), "flow"), seed=2),
    }
    losses, state = {}, None
    for where in ("", cache):
        config = config_for(encoder, where, stages=("flow", "flow_map"))
        objective = OBJECTIVES[config[stage].objective](config, stage)
        assert ("encoder" in objective.frozen) == (not where)
        batch = next(open_batches(config, stage, objective, open_sources(config)["train"]))
        assert set(batch) == {"latent" if where else "image", "label"}
        state = state or random_state(objective)  # whatever it learns from
        state = state.replace(frozen={name: frozen[name] for name in objective.frozen})
        name = "mean_squared_error" if stage == "flow_map" else "loss"
        losses[bool(where)] = float(jax.jit(lambda *a, o=objective, n=name: o.train_step(*a)[1][n])(state, batch))
    assert losses[True] == pytest.approx(losses[False], rel=3e-3)
    assert losses[True] != losses[False]  # the latents are rounded


def test_an_interrupted_command_leaves_no_cache_and_goes_on_with_the_first_missing_shard(
    cache, encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr(latents, "SHARD_BYTES", SHARD_BYTES)
    written, write_shard, output = [], latents.write_shard, tmp_path / "cut"

    def interrupted(directory, description, number, encoded):
        if len(written) == 2:
            next(encoded)
            raise KeyboardInterrupt
        written.append(number)
        write_shard(directory, description, number, encoded)

    monkeypatch.setattr(latents, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_cache(config_for(encoder), FILE, tmp_path / "run", output)
    assert len(list(output.iterdir())) == 3 and not (output / "latents.json").exists()
    with pytest.raises(ConfigError, match=r"digits.py:tiny: data.latents='.*cut': the cache .* is unfinished"):
        check(config_for(encoder, output), file=FILE, num_devices=1)
    with pytest.raises(ValueError, match="another config"):
        write_cache(config_for(encoder, flow__train__transform="resize"), FILE, tmp_path / "run", output)

    monkeypatch.setattr(latents, "write_shard", lambda *a: (written.append(a[2]), write_shard(*a)))
    write_cache(config_for(encoder), FILE, tmp_path / "run", output)
    assert written == [0, 1, 2, 3, 4]
    write_cache(config_for(encoder), FILE, tmp_path / "run", output)  # complete: nothing to do
    assert written == [0, 1, 2, 3, 4]
    whole, cut = LatentSource(cache), LatentSource(output)
    assert whole.description == cut.description
    for i in range(len(whole)):
        a, b = (source.read(i, mirrored=True) for source in (whole, cut))
        np.testing.assert_allclose(
            a["latent"].astype(np.float32), b["latent"].astype(np.float32), rtol=ROUNDING, atol=1e-5
        )
        assert a["label"] == b["label"]


def test_the_processes_write_all_shards_once():
    for shards, processes in ((1, 1), (5, 2), (7, 16), (470, 16)):
        shares = [share_of(shards, process, processes) for process in range(processes)]
        assert [number for share in shares for number in share] == list(range(shards))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"data__latents": "/nowhere"}, ["data.latents='/nowhere'", "there is no directory", "tools.cache_latents"]),
        ({"flow__train__transform": "random_crop"}, ["data.latents=", "'random_crop' draws more than a flip"]),
        ({"flow__train__transform": "resize"}, ["transform: 'center_crop' there, 'resize' in 'flow'"]),
        ({"data__train_split": "test"}, ["data.train_split: 'train' there, 'test' in 'flow'"]),
        ({"encoder__image_std": (0.3, 0.3, 0.3)}, ["encoder.image_std: [0.35, 0.35, 0.35] there, [0.3, 0.3, 0.3]"]),
        ({"encoder__model__norm_epsilon": 1e-5}, ["encoder.model.norm_epsilon: 1e-06 there, 1e-05 in 'flow'"]),
        ({"latent_patch_size": 2}, ["latent_patch_size: 1 there, 2 in 'flow'", "shape of a latent: (16, 16) there"]),
        ({"flow__objective": "aligned_velocity", "stages": ("flow",)}, ["all of the stages ['flow'] read images"]),
    ],
)
def test_a_cache_that_does_not_fit_is_an_error_that_names_the_config_and_the_field(cache, encoder, fields, said):
    config = config_for(encoder, cache, **fields)
    config.flow.alignment_depth, config.flow.alignment_width = 1, 16
    with pytest.raises(ConfigError) as error:
        check(config, file=FILE, num_devices=1)
    assert str(error.value).startswith(f"{FILE}: ")
    for text in said:
        assert text in str(error.value)


@pytest.mark.parametrize(
    "change, said",
    [({"shape": [16, 8]}, r"shape of a latent: \(16, 8\) there, \(16, 16\)"), ({"classes": 11}, "11 classes"),
     ({"images": 1437}, "1437 images, and the training data have 1438")],
)  # fmt: skip
def test_latents_of_another_shape_or_of_other_data_are_refused(cache, encoder, tmp_path, change, said):
    shutil.copytree(cache, tmp_path / "other")
    path = tmp_path / "other" / "latents.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    config = config_for(encoder, tmp_path / "other")
    with pytest.raises(ValueError, match=said):
        check(config, file=FILE, num_devices=1)
        open_sources(config)


def test_what_fits_is_accepted_and_the_computation_may_be_of_another_dtype(cache, encoder):
    config = config_for(encoder, cache, dtype="bfloat16", encoder__model__remat="full")
    check(config, file=FILE, num_devices=1)
    open_sources(config)


def test_a_cache_of_before_there_were_patches_has_none(cache, encoder, tmp_path):
    shutil.copytree(cache, tmp_path / "old")
    path = tmp_path / "old" / "latents.json"
    about = json.loads(path.read_text())
    del about["encoded_by"]["latent_patch_size"]
    path.write_text(json.dumps(about))
    check(config_for(encoder, tmp_path / "old"), file=FILE, num_devices=1)


def command(encoder, output, *options, prelude=""):
    code = f"import runpy; from rae_jax.data import latents; {prelude}; "
    code += "runpy.run_module('tools.cache_latents', run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", code, f"--config={FILE}", f"--config.encoder.weights={encoder[0]}",
            "--config.flow.train.transform=center_crop_flip", f"--output={output}", *options]  # fmt: skip


@pytest.mark.slow
def test_two_processes_of_two_devices_write_the_cache_of_one(cache, encoder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            command(encoder, tmp_path / "two", "--distributed", f"--coordinator_address={address}",
                    "--num_processes=2", f"--process_id={i}", prelude=f"latents.SHARD_BYTES = {SHARD_BYTES}"),
            cwd=runs.ROOT, env=runs.environment(2), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    one, two = LatentSource(cache), LatentSource(tmp_path / "two")
    assert one.description == two.description
    assert "complete" in outputs[0] and "latents-00001" in outputs[0] and "latents-00002" in outputs[1]
    for i in range(0, len(one), 7):
        for mirrored in (False, True):
            a, b = (s.read(i, mirrored=mirrored)["latent"].astype(np.float32) for s in (one, two))
            np.testing.assert_allclose(a, b, rtol=ROUNDING, atol=1e-5)


@pytest.mark.slow
def test_a_run_trains_from_the_cache_of_a_finished_one_and_refuses_other_weights(tmp_path):
    """The losses are those from the images; a run that changes over to the cache in the middle has them too."""
    made, weights = tmp_path / "made", []
    status, output = runs.run(made, "--config.stages=('encoder', 'decoder', 'stats')")
    assert status == 0, output
    options = f"--config={FILE}", f"--workdir={made}", f"--output={tmp_path / 'cache'}"
    status, output = runs.run_module("tools.cache_latents", *options, devices=4)
    assert status == 0, output
    weights = [f"--config.{name}.weights={made / name / 'weights'}" for name in ("encoder", "decoder", "stats")]
    only_flow = ["--config.stages=('flow',)", *weights, "--config.evaluation.judge=False"]
    cached = f"--config.data.latents={tmp_path / 'cache'}"
    losses = {}
    for name, options in (("images", []), ("cached", [cached])):
        status, output = runs.run(tmp_path / name, *only_flow, *options)
        assert status == 0, output
        losses[name] = runs.metrics(tmp_path / name, "flow")
    assert "velocity on the cached latents of 1438 images" in output
    process = runs.start(tmp_path / "changed", *only_flow, "--config.flow.train.max_loss=1e-9")  # stops it at once
    assert "max_loss" in process.communicate()[0]
    status, output = runs.run(tmp_path / "changed", *only_flow, cached)
    assert status == 0, output
    losses["changed"] = runs.metrics(tmp_path / "changed", "flow")
    assert sorted(losses["images"]) == list(range(1, 21))
    for step, loss in losses["images"].items():
        assert losses["cached"][step] == pytest.approx(loss, rel=2e-3)
    assert losses["changed"] == losses["cached"]

    other = [f"--config.encoder.weights={RANDOM}" if "encoder" in option else option for option in only_flow]
    status, output = runs.run(tmp_path / "refused", *other, cached)
    assert status == 1 and "made by other weights of 'encoder'" in output, output
