"""Sampling of mixtures of transformers against Bagel's: guided velocities, and runs from noise to latents."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases
from golden_mixtures import at, mixture, patches_of, row
from golden_packs import capacity, markers

from rae_jax.components.component import Component
from rae_jax.components.remembered import Given, Guidance, Wanted, guided_velocity, remember, rows_of, velocity_after
from rae_jax.data.packing import Item, arrange, pack
from rae_jax.flow.guidance import guide_twice
from rae_jax.flow.samplers import euler
from rae_jax.flow.times import sampling_times
from rae_jax.models.mixture_of_transformers import Images, Texts, joined

NOTHING = {"text": 0.0, "semantic": 0.0, "clean": 0.0}


def component(model):
    return Component("flow", model, None, "float32", "bagel", "", "the golden case")


def velocity(model, params, halves, z, t):
    """After what is given has been read."""
    part = component(model)
    return velocity_after(part, params, remember(part, params, *halves), z, t)


def samples_of(case, inputs):
    """`(texts, images)` of each sample of a call: ids, and what is given of the source."""
    told = case.constructor
    if "prompt_token_ids" in inputs:
        grids = [tuple(grid) for grid in inputs["latent_grids"]]
        return [([], ids, grid) for ids, grid in zip(inputs["prompt_token_ids"], grids, strict=True)]
    latent, patch = inputs["source_latent"], told["latent_patch_size"]
    grid = tuple(side // patch for side in latent.shape[-2:])
    images = [Item("clean", grid=grid, values=patches_of(latent[None], np.array([grid]), patch))]
    if inputs.get("use_vit"):
        side = told["vit_config"]["patch_size"]
        pixels = inputs["source_pixels"]  # [C, H, W]
        across = (pixels.shape[1] // side, pixels.shape[2] // side)
        cut = pixels.reshape(pixels.shape[0], across[0], side, across[1], side)
        images.append(Item("semantic", grid=across, values=cut.transpose(1, 3, 2, 4, 0).reshape(np.prod(across), -1)))
    return [(images, inputs["instruction_token_ids"], grid)]


def whole_pack(case, samples, *, text=True, image=True):
    """The pack of samples and images to be made, without the text or without the given images."""
    arranged = [
        arrange(
            [*(images if image else []), *([Item("text", ids=ids)] if text else []), Item("noised", grid=grid)],
            NOTHING,
            itertools.repeat(1.0),
        )
        for images, ids, grid in samples
    ]
    return pack(arranged, markers(case.constructor), capacity=capacity(case.constructor), normals=itertools.repeat(0.0))


def chosen(places, indexes):
    return at(places, np.asarray(indexes, int))


def halves(packed):
    """What is given, and what is wanted, of a pack."""
    asked = packed.places.noise >= 0
    text, places = packed.kind == "text", packed.places

    def texts(which):
        indexes = np.flatnonzero(which)
        return Texts(row(packed.ids[indexes]), chosen(places, indexes))

    def images(kind):
        indexes = packed.indexes(kind)
        if kind not in packed.values:
            return None
        t = jnp.zeros((1, len(indexes)))
        return Images(row(packed.values[kind]), row(packed.position[indexes]), chosen(places, indexes), t)

    given = Given(texts(text & ~asked), images("clean"), images("semantic"))
    noised = packed.indexes("noised")
    return given, Wanted(texts(text & asked), row(packed.position[noised]), chosen(places, noised))


@functools.cache
def packs_of(case, key):
    """The packs with everything, without the text, and without the given images; `key` are a call's inputs."""
    samples = samples_of(case, key.inputs)
    return [whole_pack(case, samples, **less) for less in ({}, {"text": False}, {"image": False})]


def guidance_of(inputs, **changes):
    told = {
        "text_scale": inputs["cfg_text_scale"],
        "image_scale": inputs.get("cfg_img_scale", 1.0),
        "interval": tuple(inputs.get("cfg_interval", (0.0, 1.0))),
        "renormalisation": inputs.get("cfg_renorm_type", "global"),
        "least_norm": inputs["cfg_renorm_min"],
    }
    return Guidance(**told | changes)


VARIANTS = {
    "guided, no renormalisation": {"least_norm": 1.0},
    "guided, global": {},
    "guided, channel": {"renormalisation": "channel"},
    "guided, text_channel": {"renormalisation": "text_channel"},
}


class Told:
    """What is given in a call, by which its packs are known."""

    def __init__(self, inputs):
        given = (
            "prompt_token_ids",
            "latent_grids",
            "instruction_token_ids",
            "use_vit",
            "source_latent",
            "source_pixels",
        )
        self.inputs = {name: inputs[name] for name in given if name in inputs}
        self.key = repr(sorted(self.inputs.items(), key=lambda pair: pair[0]))

    def __hash__(self):
        return hash(self.key)

    def __eq__(self, other):
        return self.key == other.key


@functools.cache
def compiled(case, told):
    """`(z, t) -> ` the velocities after each of the packs, and the first layer's keys of what is given in the first."""
    model, params, _ = mixture(case)
    packs = packs_of(case, told)

    def run(z, t):
        given, _ = halves(packs[0])
        _, memory = model.apply({"params": params}, given.texts, None, given.clean, given.semantic, mutable=["cache"])
        parts = [part for part in (given.texts, given.semantic, given.clean) if part is not None]
        order = np.argsort(np.concatenate([part.places.order[0] for part in parts]))
        keys = memory["cache"]["decoder"]["blocks_0"]["key"][0][order]
        return [velocity(model, params, halves(packed), z, t) for packed in packs], keys

    noised = packs[0].position[packs[0].indexes("noised")]
    z, t = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, len(noised), model.latent_channels), (1,)))
    return jax.jit(run).lower(z, t).compile()


def guided(case, inputs, **changes):
    """The guided velocity function of a call, whose parts are one program also where nothing else is compiled."""

    def part(number):
        def velocity(z, t):
            with jax.disable_jit(False):
                return compiled(case, Told(inputs))(z, t)[0][number]

        return velocity

    return guided_velocity(*map(part, range(3)), guidance_of(inputs, **changes))


@cases("bagel_edit", "bagel_t2i_sampling")
def test_velocities_and_their_guidance_are_the_official_ones(case):
    calls = case.calls("_forward_flow")
    assert calls
    for call in calls:
        inputs, told = call.inputs, Told(call.inputs)
        z, t = row(inputs["noise"]), jnp.full(1, inputs["timestep"])
        found, keys = compiled(case, told)(z, t)
        ours = {
            "conditional velocity": found[0][0],
            "velocity without the instruction": found[1][0],
            "velocity without the source image": found[2][0],
            "context key of the first layer": keys,
            "rotary position of the image tokens with all conditions, without the instruction, without the source": [
                int(packed.places.rotary[packed.indexes("noised")][0]) for packed in packs_of(case, told)
            ],
        }
        with jax.disable_jit():
            ours["velocity"] = guided(case, inputs)(z, t)[0]
            if "use_vit" in inputs:
                ours |= {name: guided(case, inputs, **changes)(z, t)[0] for name, changes in VARIANTS.items()}
        for name, expected in call.outputs.items():
            case.assert_close(ours[name], expected)


@cases("bagel_edit", "bagel_t2i_sampling")
def test_runs_are_the_official_ones(case):
    calls = case.calls("generate_image")
    assert calls
    for call in calls:
        inputs, outputs = call.inputs, call.outputs
        times = sampling_times(inputs["num_timesteps"] - 1, shift=inputs["timestep_shift"])
        with jax.disable_jit():  # a loop over the compiled velocities
            noise, velocity = jnp.asarray(row(inputs["noise"])), guided(case, inputs)
            states = np.asarray(euler(velocity, noise, times, trajectory=True)[:, 0])
        first = packs_of(case, Told(inputs))[0]
        wanted = first.places.noise >= 0
        ours = {
            "times of the model calls": times[:-1],
            "trajectory": states,
            "latent tokens": states[-1],
            "velocities": -np.diff(states, axis=0) / -np.diff(times)[:, None, None],
            "packed_position_ids": first.places.rotary[wanted],
            "packed_indexes": np.flatnonzero(wanted),
            "packed_key_value_indexes": np.flatnonzero(~wanted),
            "packed_vae_position_ids": first.position[first.indexes("noised")],
        }
        for name, expected in outputs.items():
            case.assert_close(ours[name], expected)


@cases("bagel_edit", "bagel_t2i_sampling")
def test_what_is_remembered_changes_nothing(case):
    """The velocity in the whole pack, in one piece."""
    model, params, _ = mixture(case)
    inputs = case.calls("_forward_flow")[0].inputs
    packed = packs_of(case, Told(inputs))[0]
    given, wanted = halves(packed)
    z, t = row(inputs["noise"]), jnp.full(1, inputs["timestep"])

    @jax.jit
    def whole(z, t):
        ids = jnp.concatenate([given.texts.ids, wanted.markers.ids], axis=1)
        texts = Texts(ids, joined([given.texts.places, wanted.markers.places]))
        noised = Images(z, wanted.position, wanted.places, jnp.broadcast_to(t[:, None], z.shape[:2]))
        return model.apply({"params": params}, texts, noised, given.clean, given.semantic)[0]

    np.testing.assert_allclose(compiled(case, Told(inputs))(z, t)[0][0], whole(z, t), atol=2e-6)


def test_a_renormalisation_that_there_is_not_is_said():
    v = jnp.ones((1, 2, 3))
    with pytest.raises(ValueError, match="renormalisation 'local' is not one of"):
        guide_twice(v, v, text_scale=2.0, renormalisation="local")
    with pytest.raises(ValueError, match=r"interval .* is empty"):
        guided_velocity(None, None, None, Guidance(2.0, interval=(0.5, 0.1)))


def test_guidance_holds_above_the_interval_and_up_to_its_end():
    functions = [lambda z, t, value=value: jnp.full_like(z, value) for value in (2.0, 1.0, 0.5)]
    told = Guidance(3.0, image_scale=2.0, interval=(0.25, 0.75), least_norm=1.0)
    velocity = guided_velocity(*functions, told)
    z = jnp.zeros((1, 2, 3))
    times = (0.2, 0.25, 0.26, 0.75, 0.76)
    found = [float(velocity(z, jnp.full(1, t))[0, 0, 0]) for t in times]
    together = velocity(jnp.zeros((5, 2, 3)), jnp.array(times))[:, 0, 0].tolist()  # each row by its own time
    once = 1 + 3 * (2 - 1)
    twice = 0.5 + 2 * (once - 0.5)
    assert found == together == [2.0, 2.0, twice, twice, 2.0]
    alone = guided_velocity(*functions, told._replace(text_scale=1.0))  # without a text scale the image's does nothing
    assert float(alone(z, jnp.full(1, 0.5))[0, 0, 0]) == 2.0
    unseen = guided_velocity(*functions[:2], None, told)  # nor where no image is shown
    assert float(unseen(z, jnp.full(1, 0.5))[0, 0, 0]) == once


@cases("bagel_edit", "bagel_t2i_sampling")
def test_rows_for_the_samplers_stand_as_the_pack_does(case):
    """Rows with padding, of square images, against packs of the same."""
    model, params, _ = mixture(case)
    told, rng = markers(case.constructor), np.random.default_rng(0)
    grid, capacity_, ids = 2, model.latent_capacity, [3, 7, 5]
    editing = case.name.startswith("bagel_edit")
    source = rng.normal(size=(4, model.latent_channels)).astype(np.float32) if editing else None
    given = [Item("clean", grid=(grid, grid), values=source)] if editing else []
    z, t = rng.normal(size=(1, 4, model.latent_channels)).astype(np.float32), jnp.full(1, 0.6)
    padded = jnp.array([[told.text_start, *ids, told.text_end, 0, 0]])
    latents = source[None] if editing else None

    @functools.partial(jax.jit, static_argnames="image")
    def of_rows(length, image):
        rows = rows_of(padded, length, grid=grid, capacity=capacity_, markers=told, source=latents, shown=image)
        return velocity(model, params, rows, z, t)

    for text, image in ((True, True), (False, True), *([(True, False)] if editing else [])):
        packed = whole_pack(case, [(given, ids, (grid, grid))], text=text, image=image)
        expected = jax.jit(lambda z, t, p=packed: velocity(model, params, halves(p), z, t))(z, t)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(of_rows(jnp.array([5 if text else 0]), image), expected, atol=3e-6)
