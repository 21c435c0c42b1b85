"""Durations in epochs, images and steps: what they are in steps, in the papers' configs too."""

import importlib

import pytest
from ml_collections import ConfigDict

from configs import base, digits, dith_xl, rac_256, rae_dinov2b_vitxl
from rae_jax.experiment.flags import shipped
from rae_jax.training.durations import DURATIONS, give_way, in_epochs, resolve, steps_per_epoch, to_steps
from rae_jax.training.optimizer import make_optimizer

IMAGENET = 1_281_167
CONFIGS = [
    *shipped(),
    "digits:tiny", "digits_rac:tiny", "digits_rpiae:tiny", "dith_xl:S", "dith_xl:XL-512", "finetune:tiny",
    "rae_dinov2b_vitxl:october-512", "rpiae_dinov2b_vitxl:joint", "rpiae_dinov2b_vitxl:frozen", "rpiae_xl:60",
    "rpiae_xl:800-50", "rpiae_xl:dith-conv", "dith_xl:october", "dith_xl:T", "dit_xl:siglip2_b-800",
    "rae_dinov2b_vitxl:paper", "rpiae_dinov2b_vitxl:paper", "mf_rae_cmt_256:paper",
    *(f"rac_256:{variant}" for variant in rac_256.every_variant()),
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


FALL_TO_800 = {"warmup_steps": 50_040, "decay_end_step": 1_000_800}
# Stage, batch, and updates as the official code counts them, which for the generators asks for 1400 epochs.
OFFICIAL = {
    "dith_xl": ("flow", 1024, 1400, 1_751_400, FALL_TO_800),
    "dith_xl:XL-512": ("flow", 1024, 400, 500_400, FALL_TO_800),
    "rpiae_xl:800": ("flow", 1024, 1400, 1_751_400, FALL_TO_800),
    **{
        name: ("decoder", 512, 16, 40_032, {"warmup_steps": 2502, "decay_end_step": 40_032})
        for name in ("rae_dinov2b_vitxl", "rae_dinov2b_vitxl:october", "rae_dinov2b_vitxl:512", "rae_siglip2b_vitxl")
    },
    "rpiae_dinov2b_vitxl": ("pivot", 256, 16, 80_064, {"warmup_steps": 5004, "decay_end_step": 80_064}),
}
# First update of the discriminator, of the adversarial loss; warm-up of the discriminator, in its own updates.
ADVERSARIAL = {"decoder": (15_012, 20_016, 2502), "pivot": (30_024, 40_032, 5004)}


@pytest.mark.parametrize("name", OFFICIAL)
def test_steps_are_those_of_the_official_code_at_its_batch_size_and_epochs(name):
    stage, batch_size, epochs, steps, schedule = OFFICIAL[name]
    config = load(name)
    config[stage].train.update(batch_size=batch_size, epochs=epochs)
    section = resolve(config, IMAGENET)[stage]
    assert section.train.steps == steps
    assert {field: section.train.optimizer[field] for field in schedule} == schedule
    if stage in ADVERSARIAL:
        loss, (discriminator_from, gan_from, warmup) = section.loss, ADVERSARIAL[stage]
        assert (loss.discriminator_from_step, loss.gan_from_step) == (discriminator_from, gan_from)
        assert loss.discriminator_optimizer.warmup_steps == warmup


@pytest.mark.parametrize(("batch_size", "steps_made"), [(512, 400 * 1251), (2048, 400 * 1251), (512, 20 * 1251)])
def test_a_schedule_in_epochs_goes_on_where_it_was_when_the_batch_size_changes(batch_size, steps_made):
    config = dith_xl.get_config()
    assert config.flow.train.batch_size == 1024
    images = steps_made * 1024
    before = resolve(config, IMAGENET)
    assert resolve(config, IMAGENET, {"flow": (steps_made, images)}) == before
    config.flow.train.batch_size = batch_size
    after = resolve(config, IMAGENET, {"flow": (steps_made, images)})

    # The end is after as many images.
    left = (after.flow.train.steps - steps_made) * batch_size
    assert images + left == pytest.approx(before.flow.train.steps * 1024, abs=802 * 1024)
    if steps_made > 40 * 1251:  # the warm-up is over
        rates = [float(make_optimizer(each.flow.train.optimizer)[1](steps_made)) for each in (before, after)]
        assert rates[0] == pytest.approx(rates[1], rel=1e-3) and rates[0] < 2e-4
    # Later starts find the same durations.
    later = {"flow": (steps_made + 1000, images + 1000 * batch_size)}
    assert resolve(config, IMAGENET, later) == after
    # What is said in steps stays.
    config.flow.train.epochs, config.flow.train.steps = 0.0, 12345
    assert resolve(config, IMAGENET, later).flow.train.steps == 12345
