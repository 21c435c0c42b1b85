"""Durations in epochs, images and steps: what they are in steps, in the papers' configs too."""

import importlib
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import base, digits, dith_xl, rac_256, rae_dinov2b_vitxl
from rae_jax.training.durations import DURATIONS, give_way, in_epochs, resolve, steps_per_epoch, to_steps

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT.parent / "shared" / "recipes"
IMAGENET = 1_281_167
CONFIGS = [
    *(path.stem for path in sorted((ROOT / "configs").glob("*.py")) if path.stem not in ("__init__", "base")),
    "digits:tiny", "digits_rac:tiny", "digits_rpiae:tiny", "dith_xl:S", "dith_xl:XL-512", "finetune:tiny",
    "rae_dinov2b_vitxl:october-512", "rpiae_dinov2b_vitxl:joint", "rpiae_dinov2b_vitxl:frozen", "rpiae_xl:60",
    "rpiae_xl:800-250", "rpiae_xl:dith", *(f"rac_256:{variant}" for variant in rac_256.variants()),
]  # fmt: skip


def load(name: str) -> ConfigDict:
    name, _, variant = name.partition(":")
    module = importlib.import_module(f"configs.{name}")
    return module.get_config(variant) if variant else module.get_config()


def leaves(section: ConfigDict, path: str = "") -> dict[str, object]:
    found = {}
    for name, value in section.items():
        found |= leaves(value, f"{path}{name}.") if isinstance(value, ConfigDict) else {path + name: value}
    return found


@pytest.mark.parametrize(
    ("images", "batch_size", "steps"),
    [(IMAGENET, 1024, 1251), (IMAGENET, 512, 2502), (IMAGENET, 256, 5004), (1438, 64, 22), (64, 64, 1), (63, 64, 1)],
)
def test_an_epoch_is_of_whole_batches_and_at_least_one(images, batch_size, steps):
    assert steps_per_epoch(images, batch_size) == steps


@pytest.mark.parametrize(
    ("said", "steps"),
    [
        (dict(epochs=800), 1_000_800), (dict(epochs=0.5), 626), (dict(images=1024), 1), (dict(images=1025), 2),
        (dict(images=5 * 1024), 5), (dict(steps=7), 7), ({}, 0),
    ],
)  # fmt: skip
def test_each_unit_gives_its_steps(said, steps):
    units = dict(epochs=0.0, images=0, steps=0) | said
    assert to_steps(**units, train_images=IMAGENET, batch_size=1024) == steps


@pytest.mark.parametrize("name", CONFIGS)
def test_a_resolved_config_says_every_duration_in_steps_and_changes_in_nothing_else(name):
    config = load(name)
    before, resolved = leaves(config), resolve(config, IMAGENET)
    after = leaves(resolved)
    assert leaves(config) == before and leaves(resolve(resolved, 5)) == after
    assert not in_epochs(resolved)
    units = {unit for three in DURATIONS for unit in three}
    for field, value in after.items():
        if field.rpartition(".")[2] in units:
            assert type(value) is (float if "epoch" in field else int)
        else:
            assert value == before[field], field
    for three in DURATIONS:
        for field in after:
            if field.rpartition(".")[2] in three[:2]:
                assert after[field] == 0, field
    for stage in resolved.stages:
        train = resolved[stage].train
        assert train.steps > 0 or resolved[stage].objective == "latent_statistics"
        assert train.optimizer.shape == "constant" or train.optimizer.decay_end_step > train.optimizer.warmup_steps


def test_every_field_in_epochs_is_a_duration_with_its_two_other_units():
    fields = {field.rpartition(".")[2] for field in leaves(base.get_config())}
    assert {field for field in fields if "epoch" in field} == {epochs for epochs, _, _ in DURATIONS}
    assert {unit for three in DURATIONS for unit in three} <= fields


def test_schedules_follow_the_batch_size_of_their_stage():
    config = dith_xl.get_config()
    config.flow.train.batch_size = 256
    train = resolve(config, IMAGENET).flow.train
    of_one = steps_per_epoch(IMAGENET, 256)
    assert (train.steps, train.optimizer.warmup_steps) == (800 * of_one, 40 * of_one)
    assert train.optimizer.decay_end_step == 800 * of_one

    config = rae_dinov2b_vitxl.get_config()
    config.decoder.train.batch_size = 1024
    loss = resolve(config, IMAGENET).decoder.loss
    assert (loss.discriminator_from_step, loss.gan_from_step) == (6 * 1251, 8 * 1251)
    assert loss.discriminator_optimizer.warmup_steps == 1251


def test_what_is_said_in_steps_stays_whatever_batch_and_data_are():
    config = digits.get_config()
    for section in (config.encoder, config.flow):
        section.train.batch_size = 7
    resolved = resolve(config, 3)
    for name in ("encoder", "flow"):
        assert resolved[name].train.steps == config[name].train.steps
        assert resolved[name].train.optimizer == config[name].train.optimizer


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("flow.train.steps", 500, r"flow\.train\.epochs=800\.0 and flow\.train\.steps=500 say one duration in two"),
        ("flow.train.images", 9, r"flow\.train\.epochs=800\.0 and flow\.train\.images=9 say one duration in two"),
        ("flow.train.optimizer.warmup_steps", 3, r"optimizer\.warmup_epochs=40\.0 and .*warmup_steps=3 say"),
        ("flow.train.epochs", -1.0, r"flow\.train\.epochs=-1\.0 is no duration"),
        ("flow.train.epochs", float("inf"), r"flow\.train\.epochs=inf is no duration"),
        ("flow.train.epochs", float("nan"), r"flow\.train\.epochs=nan is no duration"),
        ("flow.train.batch_size", 0, r"flow\.train\.batch_size=0; a batch has at least one image"),
    ],
)
def test_two_units_at_once_and_what_is_no_duration_are_refused_by_name(field, value, text):
    config = dith_xl.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=text):
        resolve(config, IMAGENET)


def test_what_is_given_replaces_the_same_duration_in_another_unit_and_no_other():
    config = rae_dinov2b_vitxl.get_config()
    config.decoder.train.steps = 500
    give_way(config, {"decoder.train.steps", "decoder.loss.gan_from_step"})
    resolved = resolve(config, IMAGENET).decoder
    assert (resolved.train.steps, resolved.loss.gan_from_step) == (500, 0)  # given as 0: from the start
    assert (resolved.loss.discriminator_from_step, resolved.train.optimizer.decay_end_step) == (6 * 2502, 16 * 2502)

    config = digits.get_config()
    config.flow.train.epochs = 3
    give_way(config, {"flow.train.epochs"})
    assert resolve(config, 1438).flow.train.steps == 3 * (1438 // 32)


def test_two_given_units_of_one_duration_are_refused():
    config = dith_xl.get_config()
    config.flow.train.steps = 500
    give_way(config, {"flow.train.steps", "flow.train.epochs"})
    with pytest.raises(ValueError, match="say one duration in two units"):
        resolve(config, IMAGENET)


def numbers(recipe: str) -> dict[str, float]:
    """Durations of an official release in steps, as `shared/recipes` has them; what it does not state is absent."""
    effective = json.loads((RECIPES / f"{recipe}.json").read_text())["effective"]
    rate, critic = effective["learning_rate"], effective.get("discriminator")
    start = {term["term"].partition(" ")[0].strip(":"): term.get("start_step") for term in effective["loss"]}
    found = {
        "batch": effective["batch_global"],
        "warmup": rate["warmup_steps"],
        "decay_end": rate["decay_end_step"],
        "discriminator_from": critic and critic["start_step"],
        "discriminator_warmup": critic and critic["learning_rate"]["warmup_steps"],
        "gan_from": start.get("adversarial"),
        "lpips_from": start.get("LPIPS"),
        "steps": effective["steps"],
        "epochs": effective["epochs"],
    }
    return {name: value for name, value in found.items() if value is not None}


# Where a shorter run is reported, or the batch differs, the recipe's is what is compared.
SAME = {
    "rae_stage2_dit_dh_xl_256": ("dith_xl", "flow"),
    "rae_stage2_dit_dh_xl_512": ("dith_xl:XL-512", "flow"),
    "rae_stage1_dinov2b_december": ("rae_dinov2b_vitxl", "decoder"),
    "rae_stage1_dinov2b_october": ("rae_dinov2b_vitxl:october", "decoder"),
    "rae_stage1_dinov2b_512": ("rae_dinov2b_vitxl:512", "decoder"),
    "rae_stage1_siglip2b": ("rae_siglip2b_vitxl", "decoder"),
    "rpiae_stage1": ("rpiae_dinov2b_vitxl", "pivot"),
    "rpiae_lightning_dit": ("rpiae_xl:800", "flow"),
}


@pytest.mark.skipif(not RECIPES.exists(), reason="shared/recipes is not there")
@pytest.mark.parametrize("recipe", SAME)
def test_steps_are_those_of_the_official_code_at_its_batch_size(recipe):
    name, stage = SAME[recipe]
    expected, config = numbers(recipe), load(name)
    config[stage].train.batch_size = expected["batch"]
    if "epochs" in expected:
        config[stage].train.epochs = expected["epochs"]
    section = resolve(config, IMAGENET)[stage]
    found = {
        "batch": section.train.batch_size,
        "epochs": expected.get("epochs"),
        "steps": section.train.steps,
        "warmup": section.train.optimizer.warmup_steps,
        "decay_end": section.train.optimizer.decay_end_step,
    }
    if "loss" in section:
        found |= {
            "discriminator_from": section.loss.discriminator_from_step,
            "discriminator_warmup": section.loss.discriminator_optimizer.warmup_steps,
            "gan_from": section.loss.gan_from_step,
            "lpips_from": section.loss.lpips_from_step,
        }
    assert expected == {name: found[name] for name in expected}
