"""Flow maps of a mixture of transformers: what they are told of a batch, what they learn from, how they are sampled."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_state, random_weights

from configs import digits, digits_edit, edit_one_step
from rae_jax.components.catalogue import component
from rae_jax.components.conditions import embedding
from rae_jax.components.generators import flow_map, flow_map_teacher
from rae_jax.components.latent_spaces import latent_space
from rae_jax.components.mixtures import Instruction, Request, guidance_of, instructed_velocity, instruction_condition
from rae_jax.components.telling import telling
from rae_jax.data.request_batches import places_made, request_batches, said_before, shapes
from rae_jax.data.scenes import SceneSource
from rae_jax.data.told_images import answered, captioned, edited
from rae_jax.experiment.configuration import check, example_batch
from rae_jax.experiment.stages import open_batches
from rae_jax.experiment.workdir import ConfigError
from rae_jax.flow.samplers import euler
from rae_jax.flow.times import sampling_times
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.objectives.catalogue import objective_of
from rae_jax.objectives.cmt import draw_pairs, take_over
from rae_jax.objectives.objective import stage_key
from rae_jax.sampling.generator import flow_map_generator, sample_keys

STAGES = ("mid_training", "flow_map")
ROWS = 4


def config_of(task="edit", **changes):
    config = digits_edit.get_config("tiny-few_steps" if task == "edit" else "tiny-caption-few_steps")
    for stage in STAGES:
        config[stage].train.batch_size = ROWS
        config[stage].update(changes)
    return config


@functools.cache
def batch_of(task):
    config = config_of(task)
    objective = objective_of(config, "flow_map")
    with contextlib.closing(open_batches(config, "flow_map", objective, SceneSource("train"))) as batches:
        return jax.tree.map(jnp.asarray, next(batches))


@functools.cache
def parts(task):
    config = config_of(task)
    found = {n: random_weights(component(config, n)) for n in ("encoder", "decoder", "mixture", "flow_map")}
    shape = latent_space(config).shape
    return found | {"stats": {"mean": jnp.full(shape, 0.1), "variance": jnp.full(shape, 2.0)}}


@pytest.mark.parametrize("task", ["edit", "caption"])
def test_a_batch_tells_what_its_requests_do(task):
    config, batch = config_of(task), batch_of(task)
    objective = objective_of(config, "flow_map")
    assert objective.reads_requests
    assert {n: (x.shape, x.dtype) for n, x in batch.items()} == {
        n: (x.shape, x.dtype) for n, x in example_batch(config, "flow_map", objective).items()
    }
    how = telling(config)
    told = jax.jit(how.condition)(parts(task), batch)
    np.testing.assert_array_equal(told.ids, batch["ids"])
    assert how.null(told).length.tolist() == [0] * ROWS and min(told.length.tolist()) > 3
    assert (told.source is None) == (task == "caption")
    if task == "edit":
        assert (batch["source"] != batch["image"]).any(axis=(1, 2, 3)).all()
        latents = latent_space(config).encode(parts(task), batch["source"] / 255.0)
        np.testing.assert_allclose(told.source, (latents - 0.1) / np.sqrt(2.0 + 1e-5), atol=1e-4)


class Chain:
    """Examples of two edits each, of which images are numbers."""

    def __init__(self, length=3):
        self._length = length

    def __len__(self):
        return self._length

    def parts(self, index, draw):
        return edited([10 * index + i for i in range(3)], ["first", "second"])

    def image(self, image):
        return image


def spell(text):
    return {"ids": np.frombuffer(text.ljust(8).encode(), np.uint8).astype(np.int32), "length": np.int32(len(text))}


def pixels(image):
    return np.full((2, 2, 3), image, np.uint8)


def chains(**changes):
    return request_batches(Chain(), spell, read=pixels, **{"batch_size": 6, "seed": 0} | changes)


def test_each_edit_of_a_chain_is_drawn_with_what_is_said_before_it():
    with contextlib.closing(chains()) as batches:
        rows = [next(batches) for _ in range(4)]
        state = batches.get_state()
        last = next(batches)
    source, made = (np.concatenate([row[name][:, 0, 0, 0] for row in rows]) for name in ("source", "image"))
    ids = np.concatenate([row["ids"] for row in rows])
    np.testing.assert_array_equal(made, source + 1)
    assert set(source % 10) == {0, 1} and set(source // 10) == {0, 1, 2}
    second = (ids == spell("second")["ids"]).all(axis=1)
    np.testing.assert_array_equal(second, source % 10 == 1)
    with contextlib.closing(chains(rows=[1, 4])) as part:
        part.set_state(state)
        again = next(part)
    for name, array in last.items():
        np.testing.assert_array_equal(again[name], array[[1, 4]])
    expected = shapes(8, 2, 6, edits=True)
    assert {n: (x.shape, x.dtype) for n, x in last.items()} == {n: (x.shape, x.dtype) for n, x in expected.items()}


def test_what_nothing_is_said_of_is_named():
    assert said_before(captioned("a two", 7), 1) == ("a two", None)
    assert said_before(edited([1, 2, 3], ["one", "two"]), 5) == ("two", 2)
    with pytest.raises(ValueError, match="comes without a text"):
        said_before(edited([1, 2], ["one"])[::2], 1)
    with pytest.raises(ValueError, match="no image is to be made"):
        places_made(answered(1, "what?", "this"))
    assert places_made(edited([1, 2, 3], ["one", "two"])) == [2, 5]

    def too_long(text):
        raise ValueError("too long")

    batches = request_batches(Chain(), too_long, read=pixels, batch_size=1, seed=0)
    with contextlib.closing(batches), pytest.raises(ValueError, match=r"example \d of .*Chain.*: too long"):
        next(batches)
    with pytest.raises(ValueError, match="there are no images in"):
        request_batches(Chain(0), spell, read=pixels, batch_size=1, seed=0)


@pytest.mark.parametrize("scan", [False, True])
def test_a_flow_map_begins_as_its_teacher_and_what_is_read_once_may_be_repeated(scan):
    config = config_of()
    config.mixture.model.scan, config.mixture.model.depth = scan, 2
    teacher, student = flow_map_teacher(config), flow_map(config)
    source = random_weights(teacher)
    params = take_over(random_weights(student), {"mixture": source})
    assert set(params) - set(source) == {"duration_embedding"}
    assert set(params["head_of_velocity"]) - set(source["head_of_velocity"]) == {"duration_embedding"}
    rng = np.random.default_rng(0)
    batch, shape = batch_of("edit"), latent_space(config).shape
    told = Instruction(batch["ids"], batch["length"], rng.normal(size=(ROWS, *shape)).astype(np.float32))
    z = rng.normal(size=(2 * ROWS, *shape)).astype(np.float32)
    t = jnp.linspace(0.1, 0.9, 2 * ROWS)

    @jax.jit
    def both(params, fresh):
        def twice(tree):
            return jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), tree)

        v = teacher.apply(source, z, t, teacher.read(source, twice(told)))
        read, anew = (student.read(p, told) for p in (params, fresh))
        return v, student.apply(params, z, t, twice(read), t / 3), student.apply(fresh, z, t, twice(anew), t / 3)

    begun = jax.tree.map(jnp.zeros_like, params["duration_embedding"]["out"])
    params["duration_embedding"]["out"] = begun
    params["head_of_velocity"]["duration_embedding"]["out"] = begun
    v, u, other = both(params, take_over(random_weights(student), {"mixture": source}))
    assert np.abs(v).max() > 0.1
    np.testing.assert_allclose(u, v, atol=1e-5)
    assert np.abs(other - v).max() > 0.01  # it hears of the interval
    fresh = jax.jit(student.init)(jax.random.key(0))
    for place in (fresh, fresh["head_of_velocity"]):
        assert not any(np.any(leaf.unbox() if hasattr(leaf, "unbox") else leaf)
                       for leaf in jax.tree.leaves(place["duration_embedding"]["out"]))  # fmt: skip


def test_mid_training_is_on_the_trajectory_that_sampling_walks():
    """The loss anew: the guided walk of the sampler, and the flow map asked of every pair by itself."""
    config, batch = config_of(), batch_of("edit")
    objective = objective_of(config, "mid_training")
    state = random_state(objective)
    after, metrics = jax.jit(objective.train_step)(state, batch)

    step = jax.random.fold_in(stage_key(config.seed, "mid_training"), state.step)
    noise_key, _, pair_key, _, _ = jax.random.split(step, 5)
    teacher, student = flow_map_teacher(config), flow_map(config, "mid_training")
    asked = embedding(config)[1](state.frozen, batch)
    assert (config.sampling.guidance_scale, config.sampling.image_guidance_scale) == (3.0, 1.5)
    guidance = guidance_of(config.sampling)
    velocity = instructed_velocity(teacher, state.frozen["mixture"], asked, asked.null(), guidance)
    times = sampling_times(config.mid_training.trajectory_steps, shift=2.0)
    noise = jax.random.normal(noise_key, (ROWS, *latent_space(config).shape))
    states = jax.jit(lambda noise: euler(velocity, noise, times, trajectory=True))(noise)
    pairs = np.asarray(draw_pairs(pair_key, ROWS, len(times), config.mid_training.pairs))
    ends, clean = times[::-1], states[::-1]
    say = jax.jit(lambda z, r, t: student.apply(state.params, z, t, student.read(state.params, asked), r))
    errors = []
    for k in range(pairs.shape[1]):
        i, j = pairs[:, k].T
        z_i, z_j = (clean[n, jnp.arange(ROWS)] for n in (i, j))
        target = (z_i - z_j) / (ends[i] - ends[j])[:, None, None]
        errors.append(jnp.mean(jnp.square(say(z_i, ends[j], ends[i]) - target)))
    assert metrics["loss"] == pytest.approx(float(np.mean(errors)), rel=1e-5)
    words = np.unique(batch["ids"][0, 1 : batch["length"][0] - 1])  # nothing but what is read has them
    moved = np.abs(after.params["embedding"] - state.params["embedding"])[words].max(axis=1)
    assert moved.min() > 0


@pytest.mark.parametrize("scan", [False, True])
def test_what_is_read_may_be_dropped_row_by_row(scan):
    config, batch = config_of(), batch_of("edit")
    config.mixture.model.scan, config.mixture.model.depth = scan, 2
    student = flow_map(config)
    params, dropped = random_weights(student), np.array([True, False, True, True])
    source = np.random.default_rng(0).normal(size=(ROWS, *latent_space(config).shape)).astype(np.float32)
    told = Instruction(batch["ids"], batch["length"], source)

    def chosen(one, other):
        return jax.tree.map(lambda x, y: jnp.where(dropped.reshape(-1, *(1,) * (x.ndim - 1)), x, y), one, other)

    @jax.jit
    def both(params):
        t = jnp.full(ROWS, 0.5)
        read = chosen(student.read(params, told.null()), student.read(params, told))
        before = student.read(params, chosen(told.null(), told))
        return [student.apply(params, source, t, each, t / 2) for each in (read, before)]

    after, before = both(params)
    assert np.isfinite(before).all()
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize("task", ["edit", "caption"])
def test_one_step_from_an_instruction_is_noise_less_the_mean_velocity(task):
    config, frozen = config_of(task), parts(task)
    image = np.asarray(batch_of("edit")["source"][:1])[0]
    asked = instruction_condition(config, [Request("make the two red", image), Request("a blue three", image)])
    keys, space, network = sample_keys(0, jnp.arange(2)), latent_space(config), flow_map(config)
    images = jax.jit(flow_map_generator(config, (1.0, 0.0)))(frozen["flow_map"], frozen, keys, asked)
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], space.shape))(keys)
    one, told = jnp.ones(2), embedding(config)[1](frozen, asked)
    u = network.apply(frozen["flow_map"], noise, one, network.read(frozen["flow_map"], told), 0 * one)
    decoded = space.decode(frozen, LatentStatistics(**frozen["stats"]).denormalise(noise - u))
    np.testing.assert_allclose(images, decoded, atol=1e-4)


def test_at_full_size_the_papers_mixture_is_distilled_as_mf_rae_does():
    config = edit_one_step.get_config()
    assert config.stages == STAGES and edit_one_step.get_config("mfd-semantic").stages == STAGES[1:]
    section, train = config.flow_map, config.flow_map.train
    assert (section.eta, section.dt, section.derivative, section.guided) == (1.0, 0.005, "finite_difference", False)
    assert (train.batch_size, config.mid_training.train.batch_size, config.mid_training.pairs) == (256, 8, 64)
    assert {config[name].dtype for name in ("mixture", *STAGES)} == {"bfloat16_3x"}
    assert (config.flow_map.teacher.guidance_scale, config.sampling.num_steps) == (4.0, 0)
    teacher, student = component(config, "mixture").structure(), component(config, "flow_map").structure()
    assert student.keys() == teacher.keys() | {"duration_embedding"}
    for stage in STAGES:
        assert (config[stage].train.transform, config[stage].label_dropout) == ("center_crop", 0.0)
    assert edit_one_step.get_config("cmt-head").mixture.model.wide_head
    with pytest.raises(ValueError, match="has no variant 'mft'"):
        edit_one_step.get_config("mft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flow_map__guided": True}, "the flow map of a mixture of transformers is told no guidance"),
        ({"flow_map__eta": 0.5}, r"flow_map\.eta=0\.5 learns a part from data, which nothing guides"),
        (
            {"flow_map__derivative": "jvp", "mixture__model__freeze_understanding": True},
            "does not see through the understanding expert",
        ),
        ({"flow_map__teacher__renormalisation": "local"}, "renormalisation 'local' is not one of"),
        ({"data__latents": "DIR"}, "flow_map is told texts, and data.latents='DIR' has none"),
        ({"flow_map__train__transform": "center_crop_flip"}, "mirrors images, of which words may tell left and right"),
        ({"mid_training__initial": "flow"}, r"initial='flow' is not one of \['mixture'\]"),
    ],
)
def test_what_a_flow_map_of_a_mixture_cannot_learn_is_refused(changes, message):
    config = config_of()
    for name, value in changes.items():
        *above, field = name.split("__")
        section = functools.reduce(lambda place, part: place[part], above, config)
        section[field] = value
    with pytest.raises(ConfigError, match=message):
        check(config, file="configs/x.py", num_devices=1)


def test_latents_know_whether_they_are_a_flow_maps():
    config = config_of()
    teacher, batch = flow_map_teacher(config), batch_of("caption")
    told, z = Instruction(batch["ids"], batch["length"]), jnp.zeros((ROWS, *latent_space(config).shape))
    params = jax.eval_shape(teacher.init, jax.random.key(0))
    with pytest.raises(ValueError, match="flow_map=False: noised latents have no r"):
        jax.eval_shape(lambda p: teacher.apply(p, z, z[:, 0, 0], teacher.read(p, told), z[:, 0, 0]), params)


def test_a_flow_map_that_is_told_classes_has_no_such_teacher():
    config = digits.get_config("tiny")
    config.flow_map.teacher.guidance_scale = 2.0
    with pytest.raises(ValueError, match=r"learns guidance with flow_map\.guided=True"):
        flow_map(config)
