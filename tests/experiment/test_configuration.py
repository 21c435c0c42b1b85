import contextlib
import importlib
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from random_params import random_values

from configs import architectures, base, digits, digits_edit, digits_rac, digits_rpiae, digits_text, dith_xl, released
from rae_jax.components.catalogue import CATALOGUE, component, trained_by
from rae_jax.components.latent_spaces import latent_space
from rae_jax.experiment.configuration import check, resolved
from rae_jax.experiment.flags import read_config, shipped
from rae_jax.experiment.stages import open_sources
from rae_jax.experiment.workdir import ConfigError, begun, config_of, remember
from rae_jax.interop.weights import save_weights
from rae_jax.models.dit_dh import SIZES as DIT_DH
from rae_jax.objectives.catalogue import objective_of

GIVEN = {"encoder__weights": "random", "decoder__weights": "random", "stats__weights": "identity"}

GUIDED = {"sampling__guidance": "autoguidance", "sampling__guidance_scale": 1.4}


def changed(**fields):
    config = digits.get_config("tiny")
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def generators_alone(*stages, **fields):
    """A config without the stages that make latents: they need not be traced for what is wrong with a generator."""
    return changed(stages=stages or ("flow",), **GIVEN | fields)


BAD = [
    ({"flow__train__steps": 0}, 1, ["flow.train.steps=0", "at least one"]),
    ({"mesh__data": 3}, 1, ["data=3", "does not lay over 1 devices"]),
    ({"flow__train__batch_size": 100}, 8, ["flow.train.batch_size=100", "8 data-parallel devices", "use 96 or 104"]),
    ({"flow__train__gradient_accumulation": 3}, 1, ["flow.train.batch_size=16", "3 accumulated parts", "15 or 18"]),
    ({"encoder__input_size": 30}, 1, ["encoder.input_size=30", "patch_size=8", "use 24 or 32"]),
    ({"data__image_size": 64}, 1, ["data.image_size is 64", "must be equal"]),
    ({"flow__objective": "velocty"}, 1, ["velocty", "nearest: velocity"]),
    ({"stages": ("encodr",)}, 1, ["'encodr'", "nearest: encoder"]),
    ({"stages": ("flow",)}, 1, ["'flow' needs", "'encoder'", "encoder.weights"]),
    ({"stages": ("decoder", "encoder")}, 1, ["'decoder' needs", "put 'encoder' before it"]),
    ({"encoder__train__transform": "centre_crop"}, 1, ["encoder:", "centre_crop", "center_crop"]),
    ({"flow__train__optimizer__shape": "cosin"}, 1, ["flow:", "cosin", "cosine"]),
    ({"flow__time_distribution": "unifrom"}, 1, ["flow:", "unifrom", "uniform"]),
    ({"flow__prediction": "z"}, 1, ["flow.prediction='z'", "'x'"]),
    ({"flow__prediction": "x"}, 1, ["flow.t_eps=0.0", "0.05"]),
    ({"flow__model__num_heads": 0}, 1, ["a value cannot work: ZeroDivisionError", "(rae_jax/models/", ".py, line "]),
    ({"flow__largest_time": 1.5}, 1, ["largest_time=1.5"]),
    ({"sampling__internal_guidance_scale": 1.5}, 1, ["internal_guidance_scale=1.5", "no early output"]),
    ({"decoder__noise_distribution": "gauss"}, 1, ["decoder:", "gauss", "half_normal"]),
    ({"seed": -1}, 1, ["seed=-1", "0 to 4294967295"]),
    ({"seed": 2**32}, 1, ["seed=4294967296", "0 to 4294967295"]),
    ({"dtype": "float16"}, 1, ["float16", "bfloat16"]),
    ({"encoder__train__evaluate_every": 5}, 1, ["encoder.train.evaluate_every=5", "set it to 0"]),
    ({"flow__train__best_metric": "fd_latent"}, 1, ["best_metric='fd_latent'", "set flow.train.evaluate_every"]),
    ({"flow__train__best_metric": "fid", "flow__train__evaluate_every": 5}, 1, ["'fid'", "['fd_latent']"]),
    ({"flow__train__evaluation_images": 9, "flow__train__evaluate_every": 5}, 1, ["flow.train.evaluation_images", "9"]),
    ({"sampling__guidance": "auto"}, 1, ["sampling.guidance='auto'", "autoguidance"]),
    ({"sampling__guidance": "autoguidance", "sampling__guidance_scale": 1.4}, 1, ["'guide' in stages"]),
    ({"sampling__guidance_scale": 1.4, "sampling__guidance_interval": (0.7, 0.2)}, 1, ["interval (0.7, 0.2) is empty"]),
    ({"sampling__guidance_scale": 1.4, "flow__label_dropout": 0.0}, 1, ["flow.label_dropout=0.0", "null label"]),
    ({"guide__weights": "{workdir}/flw/weights"}, 1, ["guide.weights", "'flw' is none of the stages"]),
    (
        {"guide__weights": "{workdir}/flow/checkpoints/7", "guide__model__head_width": 16, **GUIDED},
        1,
        ["of its 20 steps", "the checkpoints of every none", "flow.train.keep_every_steps", "guidance_scale=1.0"],
    ),
    (
        {
            "guide__weights": "{workdir}/flow/checkpoints/7",
            "guide__model__head_width": 16,
            **GUIDED,
            "flow__train__keep_every_steps": 5,
        },
        1,
        ["checkpoints/7", "the checkpoints of every 5"],
    ),
    ({"guide__weights": "{workdir}/flow/checkpoints/5"}, 1, ["guide.weights", "guide.model is not flow.model"]),
    ({"sampling__method": "eulr"}, 1, ["sampling.method='eulr'", "heun"]),
    ({"sampling__num_samples": 0}, 1, ["sampling.num_samples=0", "at least 1"]),
    ({"sampling__labels": "even"}, 1, ["sampling.labels='even'", "random"]),
    ({"sampling__labels": "unconditional", "sampling__guidance_scale": 2.0}, 1, ["nothing to push away from"]),
    ({"flow__label_dropout": 1.0}, 1, ["flow.label_dropout=1.0", "sampling.labels='unconditional'"]),
    ({"flow__family": "dit"}, 1, ["flow.family='dit'", "lightning_dit"]),
    ({"guide__weights": "/nowhere"}, 1, ["config.guide.weights", "/nowhere"]),
]


@pytest.mark.parametrize(("fields", "num_devices", "texts"), BAD, ids=[str(fields) for fields, _, _ in BAD])
def test_a_config_that_cannot_run_is_refused_by_file_and_field(fields, num_devices, texts):
    of_generators = all(name.startswith(("flow__", "guide__", "sampling__")) for name in fields)
    config = generators_alone(**fields) if of_generators else changed(**fields)
    if not any(name.startswith(("sampling__", "guide__", "flow__label_", "flow__train__evalu")) for name in fields):
        config.sampling.num_steps = 0  # no samples, whose generation would be traced
    with pytest.raises(ConfigError) as refused:
        check(config, file="configs/x.py", num_devices=num_devices)
    for text in ["configs/x.py", *texts]:
        assert text in str(refused.value)


@pytest.mark.parametrize(("name", "function"), [("encoder", "vision_transformer"), ("decoder", "vit_decoder")])
def test_an_autoencoder_without_an_architecture_is_told_what_makes_one(name, function):
    config = digits.get_config("tiny")
    config[name].model = ConfigDict()
    text = f"configs/x.py: {name}.model is empty; it is to be what {function} of configs/architectures.py returns"
    with pytest.raises(ConfigError, match=re.escape(text)):
        check(config, file="configs/x.py", num_devices=1)


@pytest.mark.parametrize(("section", "field"), [("config.decoder.model", "grid_size"), ("config.decoder", "noise_tau")])
def test_a_section_without_a_field_that_is_read_is_named_and_so_is_who_reads_it(section, field):
    config = digits.get_config("tiny")
    config.stages = ("decoder",)
    with config.unlocked():
        part = config.decoder.model if section.endswith("model") else config.decoder
        del part[field]
    with pytest.raises(ConfigError) as refused:
        check(config, file="configs/x.py", num_devices=1)
    read = rf"read in rae_jax/\w+/\w+\.py, line \d+: .*\.{field}"
    assert re.search(rf"configs/x\.py: {section} has no field '{field}', which is {read}.*; add it", str(refused.value))


def test_a_component_without_a_section_and_a_stage_without_components_are_told_what_to_add(monkeypatch):
    config = digits.get_config("tiny")
    with config.unlocked():
        config.polish = config.flow.copy_and_resolve_references()
    config.stages = ("polish",)
    with pytest.raises(
        ConfigError, match=r"stage 'polish' trains 'polish', which is none of .*; set polish\.trains to"
    ):
        check(config, file="configs/x.py", num_devices=1)
    monkeypatch.setitem(CATALOGUE, "polisher", lambda config: None)
    with pytest.raises(ConfigError, match=r"no section 'polisher' for the component .*; add it in configs/base\.py"):
        check(config, file="configs/x.py", num_devices=1)


def test_an_unknown_published_encoder_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"no published encoder 'dinov2_bb'; nearest: dinov2_b; there are .*'mae_b'"):
        released.use_pretrained_encoder(base.get_config(), "dinov2_bb")


def test_a_guiding_network_of_other_classes_latents_or_width_is_refused_before_any_work(tmp_path):
    def weak(config):
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), component(config, "guide").structure())

    config = generators_alone(guide__weights=str(tmp_path / "weak"), sampling__num_steps=0, **GUIDED)
    for other, text in (
        ({"flow__num_classes": 7}, "label_embedding"),
        ({"encoder__model__width": 24}, "(24,"),
        ({"guide__model__head_width": 16}, "head"),
    ):
        save_weights(tmp_path / "weak", weak(changed(**other)), {})
        with pytest.raises(ConfigError, match=r"does not fit config\.guide\.model") as refused:
            check(config, file="configs/x.py", num_devices=1)
        assert text in str(refused.value), refused.value
    save_weights(tmp_path / "weak", weak(config), {})
    check(config, file="configs/x.py", num_devices=1)


def test_the_base_config_is_no_experiment():
    with pytest.raises(ConfigError, match=r"base\.py: encoder\.model is empty"):
        check(base.get_config(), file="configs/base.py", num_devices=1)


@pytest.mark.parametrize("name", [*shipped(), "raev2_one_step:mfd", "mf_rae_cmt_256:paper", "raev2_dinov3l:k7-general"])
def test_an_experiment_s_batches_divide_among_the_devices_that_its_own_mesh_takes(name):
    config = read_config(name)
    for stage in config.stages:
        train = config[stage].train
        assert train.batch_size % (config.mesh.fsdp * train.gradient_accumulation) == 0, stage


def test_what_a_run_costs_can_be_asked_without_the_weights_that_it_needs():
    config = changed(stages=("flow",), sampling__num_steps=0)
    with pytest.raises(ConfigError, match="stage 'flow' needs trained weights of 'encoder'"):
        check(config, file="configs/x.py", num_devices=1)
    config.decoder.weights = "/nowhere"
    check(config, file="configs/x.py", num_devices=1, weights=False)


def test_a_config_without_a_flow_passes():
    config = changed(stages=("encoder", "decoder"))
    config.flow.model = ConfigDict()
    check(config, file="configs/x.py", num_devices=1)


def test_unconditional_generation_passes():
    config = generators_alone(flow__label_dropout=1.0, sampling__labels="unconditional")
    check(config, file="configs/x.py", num_devices=1)


def test_a_misspelt_field_in_a_config_file_is_an_error():
    config = digits.get_config()
    with pytest.raises(AttributeError, match="steps"):
        config.flow.train.stepz = 5


LEFT = {
    "a checkpoint": "flow/checkpoints/5/_CHECKPOINT_METADATA",
    "weights": "flow/finished.json",
    "samples": "samples.npz",
    "some of the samples": "samples.partial.json",
}


@pytest.mark.parametrize("what", LEFT)
def test_what_has_begun_is_bound_to_its_config_and_what_has_not_is_free(what, tmp_path):
    """A command that failed before it made anything does not stand in the way of the corrected one."""
    remember(changed(flow__num_classes=7), tmp_path, file="x.py", write=True)
    (tmp_path / "flow" / "checkpoints").mkdir(parents=True)
    assert begun(tmp_path) == {}
    remember(changed(), tmp_path, file="x.py", write=True)
    (tmp_path / LEFT[what]).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / LEFT[what]).touch()
    assert begun(tmp_path)["flow"]["num_classes"] == 10
    with pytest.raises(ConfigError, match=r"flow\.num_classes: 10 there, 7 now"):
        remember(changed(flow__num_classes=7), tmp_path, file="x.py", write=True)


def test_only_what_is_computed_must_be_as_it_was(tmp_path):
    remember(changed(), tmp_path, file="x.py", write=True)
    (tmp_path / "samples.npz").touch()
    kept = (tmp_path / "config.json").read_text()
    remember(changed(mesh__fsdp=2, flow__train__log_every=7, data__num_workers=3), tmp_path, file="x.py", write=False)
    with pytest.raises(ConfigError, match=r"flow\.label_dropout: 0\.1 there, 0\.2 now"):
        remember(changed(flow__label_dropout=0.2), tmp_path, file="x.py", write=True)
    assert (tmp_path / "config.json").read_text() == kept
    assert json.loads(kept)["flow"]["label_dropout"] == 0.1


def in_epochs(images, tmp_path):
    """The tiny flow, trained for three epochs of a folder of so many images."""
    for i in range(images):
        path = tmp_path / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    source = dict(data__source="folder", data__path=str(tmp_path / "images"), data__held_out_share=0.25)
    source |= {
        f"evaluation__{name}": False for name in ("frechet", "linear_probe", "judge")
    }  # too few, without classes
    return changed(flow__train__steps=0, flow__train__epochs=3.0, flow__train__batch_size=4, **source)


def test_epochs_are_of_the_images_to_train_on_and_a_run_goes_on_with_those_it_began_with(tmp_path):
    config = in_epochs(16, tmp_path)
    first = resolved(config, tmp_path)
    assert (first.data.train_images, first.flow.train.steps) == (12, 9)
    assert first.encoder.train.steps == config.encoder.train.steps
    remember(first, tmp_path, file="x.py", write=True)
    (tmp_path / "samples.npz").touch()
    shutil.rmtree(tmp_path / "images")
    again = resolved(config, tmp_path)
    remember(again, tmp_path, file="x.py", write=False)
    assert again.flow.train.steps == 9
    config.flow.train.batch_size = 2
    _, (line,) = remember(resolved(config, tmp_path), tmp_path, file="x.py", write=False)
    assert "flow.train.batch_size from 4 to 2" in line and "flow.train.steps from 9 to 18" in line


def test_without_the_images_epochs_need_their_number_and_steps_do_not(tmp_path):
    config = in_epochs(0, tmp_path)
    with pytest.raises(ValueError, match=r"flow\.train\.epochs is in epochs.* no folder .* set data\.train_images"):
        resolved(config)
    config.data.train_images = 100
    assert resolved(config).flow.train.steps == 75
    config.data.train_images, config.flow.train.epochs = 0, 0.0
    assert resolved(config).data.train_images == 0


def test_another_number_of_images_than_epochs_were_counted_of_is_refused(tmp_path):
    config = in_epochs(16, tmp_path)
    config.data.train_images = 13
    with pytest.raises(ValueError, match=r"data\.train_images=13, but there are 12 images; set it to that"):
        open_sources(resolved(config))
    open_sources(resolved(in_epochs(16, tmp_path)))


def test_the_number_of_imagenets_images_is_known_without_them():
    assert resolved(dith_xl.get_config()).data.train_images == 1_281_167


def test_every_field_of_the_base_config_is_read_somewhere():
    root = Path(__file__).resolve().parents[2]
    code = "\n".join(path.read_text() for path in (root / "rae_jax").rglob("*.py"))

    def names(section):
        for name, value in section.items():
            if not (isinstance(value, ConfigDict) and "objective" in value):  # a stage is named by config.stages
                yield name
            if isinstance(value, ConfigDict):
                yield from names(value)

    unread = {name for name in names(base.get_config()) if name not in code}
    assert not unread


def of_mf_rae(name):
    config = importlib.import_module(f"configs.mf_rae_{name}").get_config()
    config.flow.model = architectures.dit_dh(**DIT_DH["S"])  # traced sooner than XL
    return config


@pytest.mark.parametrize(
    ("name", "batch_size", "ema_decay"),
    [
        ("cmt_256", 8, 0.999), ("cmt_512", 8, 0.999),
        ("mfd_256", 256, 0.9999), ("mfd_512", 128, 0.9995), ("mft_256", 256, 0.9999), ("mft_512", 128, 0.9995),
    ],
)  # fmt: skip
def test_mf_raes_configs_have_the_released_numbers(name, batch_size, ema_decay):
    config = of_mf_rae(name)
    (stage,) = config.stages
    train = config[stage].train
    assert stage == ("mid_training" if "cmt" in name else "flow_map")
    assert (train.batch_size, train.ema_decay, train.optimizer.learning_rate) == (batch_size, ema_decay, 1e-4)
    assert config.flow_map.eta == (0 if "mft" in name else 1)
    assert config.data.image_size == int(name[-3:])
    assert latent_space(config).shape == ((16 if name.endswith("256") else 32) ** 2, 768)


@pytest.mark.parametrize("name", ["cmt_512", "mfd_512"])
def test_mf_raes_stages_need_the_teacher(name):
    config = of_mf_rae(name)
    assert "flow" in objective_of(config, config.stages[0]).frozen


@pytest.mark.parametrize(
    ("stage", "initial", "flow", "missing"),
    [
        ("mid_training", "flow", "", "flow"),
        ("flow_map", "", "", "flow"),
        ("flow_map", "mid_training", "random", "mid_training"),
    ],
)
def test_a_flow_map_without_its_teacher_names_the_stage_that_makes_one(stage, initial, flow, missing):
    config = generators_alone(stage, flow__weights=flow, sampling__num_steps=0)
    config[stage].initial = initial
    with pytest.raises(ConfigError) as refused:
        check(config, file="configs/x.py", num_devices=1)
    assert f"stage {stage!r} needs trained weights of {missing!r}: put {missing!r} before it" in str(refused.value)


def test_components_come_from_the_last_stage_before_that_trains_them():
    config = digits_rpiae.get_config("tiny")
    assert trained_by(config, "encoder", before="pivot") == "encoder"
    assert trained_by(config, "encoder", before="bridge") == "pivot"
    assert trained_by(config, "decoder", before="pivot") is None
    assert trained_by(config, "decoder", before="specialisation") == "pivot"
    assert trained_by(config, "decoder") == "specialisation"
    assert trained_by(config, "bridge_decoder") == "bridge"


def test_a_bridge_before_the_encoder_and_decoder_that_it_joins_says_which_stage_is_missing():
    config = digits_rpiae.get_config("tiny")
    config.encoder.weights, config.feature_stats.weights = "random", "identity"
    config.sampling.num_steps = 0
    config.stages = ("bridge",)
    with pytest.raises(ConfigError, match=r"'bridge' needs trained weights of 'decoder': put 'decoder' before it"):
        check(config, file="x", num_devices=1)
    config.decoder.weights, config.stages = "random", ("specialisation",)
    with pytest.raises(ConfigError, match=r"trained weights of 'bridge_\w+': put 'bridge' before it"):
        check(config, file="x", num_devices=1)


def test_statistics_that_a_run_measured_of_another_encoder_are_refused(tmp_path):
    """Of the same width: nothing in the shapes would tell."""
    config = generators_alone(stats__weights=str(tmp_path / "stats"), sampling__num_steps=0)
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), component(config, "stats").structure())

    def measured_by(other):
        remembered = json.loads(other.to_json_best_effort())
        save_weights(tmp_path / "stats", params, {"component": "stats", "config": remembered})

    measured_by(config)
    checked(config)
    for field, value in {"encoder__model__depth": 2, "encoder__image_mean": (0.5, 0.5, 0.5)}.items():
        measured_by(changed(**{field: value}))
        message = rf"stats\.weights=.* of other latents: {field.replace('__', '.')} differ"
        with pytest.raises(ConfigError, match=message):
            checked(config)


def checked(config):
    check(config, file="test.py", num_devices=1)


def test_a_run_of_before_there_was_an_order_of_texts_and_images_has_the_former_one(tmp_path):
    config = digits_edit.get_config("tiny")
    remember(config, tmp_path, file="configs/x.py", write=True)
    (tmp_path / "mixture").mkdir()
    (tmp_path / "mixture" / "finished.json").write_text("{}")
    kept = json.loads((tmp_path / "config.json").read_text())
    del kept["mixture"]["text_first"]
    (tmp_path / "config.json").write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match=r"mixture\.text_first: False there, True now"):
        remember(config, tmp_path, file="configs/x.py", write=True)
    config.mixture.text_first = False
    assert remember(config, tmp_path, file="configs/x.py", write=True)[1] == []


def test_what_a_run_kept_before_a_field_existed_reads_as_what_was_done_then():
    kept = json.loads(digits_rac.get_config("tiny").to_json_best_effort())
    del kept["latent_patch_size"], kept["teacher"]["model"]["shift_factor"]
    read = config_of(kept)
    assert (read.latent_patch_size, read.teacher.model.shift_factor) == (1, 0.0)
    assert latent_space(read).shape == latent_space(digits_rac.get_config("tiny")).shape
    assert "shift_factor" not in config_of(kept | {"teacher": {"model": {}}}).teacher.model  # it has no architecture
    kept["latent_patch_size"] = 2
    assert config_of(kept).latent_patch_size == 2


def test_statistics_of_a_vae_of_before_its_latents_were_shifted_are_of_the_same_latents(tmp_path):
    config = digits_text.get_config("tiny-kl")
    config.stages, config.stats.weights = ("text_to_image",), str(tmp_path / "stats")
    config.encoder.weights = config.teacher.weights = config.language_model.weights = "random"
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), component(config, "stats").structure())
    for change, refused in (({}, None), ({"latent_channels": 5}, r"other latents: teacher\.model\.latent_channels")):
        kept = json.loads(config.to_json_best_effort())
        del kept["teacher"]["model"]["shift_factor"]
        kept["teacher"]["model"] |= change
        save_weights(tmp_path / "stats", params, {"component": "stats", "config": kept})
        with pytest.raises(ConfigError, match=refused) if refused else contextlib.nullcontext():
            checked(config)


@pytest.mark.parametrize("name", ["mixture", "mid_training"])
def test_a_mixture_is_not_taken_from_a_run_that_read_instructions_in_the_other_order(name, tmp_path):
    config = digits_edit.get_config("tiny")
    config.stages, config[name].weights = (), str(tmp_path / name)
    config.update({name: {"weights": "random"} for name in ("encoder", "decoder")} | {"stats": {"weights": "identity"}})
    params = random_values(component(config, name).structure())
    refused = rf"mixture\.text_first=True, but {name}\.weights=.* with text_first=False"
    for text_first, task, message in ((True, "edit", None), (False, "edit", refused), (False, "caption", None)):
        remembered = json.loads(config.to_json_best_effort())
        remembered["mixture"] |= {"text_first": text_first, "task": task}
        if not text_first:
            del remembered["mixture"]["text_first"]  # a run of before there was a choice
        save_weights(tmp_path / name, params, {"component": name, "config": remembered})
        with pytest.raises(ConfigError, match=message) if message else contextlib.nullcontext():
            checked(config)
