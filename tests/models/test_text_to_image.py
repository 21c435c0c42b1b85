"""Scale-RAE's text-to-image system against its outputs: adapters, DiT, training, generation, understanding."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from golden import cases, nhwc, tokens
from random_params import random_params
from scipy.special import ndtr

from rae_jax.data.conversations import PLACEHOLDER, Layout, laid_out, tables
from rae_jax.data.tokenizer import open_tokenizer
from rae_jax.flow import samplers
from rae_jax.flow.path import interpolate, velocity_target
from rae_jax.flow.times import dimension_shift, logit_normal_times, sampling_times, shift_times
from rae_jax.interop import scale_rae
from rae_jax.interop.layout import flatten, under
from rae_jax.interop.model import Model
from rae_jax.interop.vit import import_encoder
from rae_jax.models.embeddings import torch_normal
from rae_jax.models.language_model import LanguageModel, token_losses
from rae_jax.models.layers import LayerNorm
from rae_jax.models.text_to_image import (
    FREQUENCIES_SEED,
    SIZES,
    Adapters,
    PromptedDiT,
    Reader,
    TokenCondition,
    gathered,
    merged,
)
from rae_jax.models.vit import VisionTransformer
from rae_jax.training.sharding import RULES

NOWHERE = (-1e4, -1e4)  # upstream's sampler passes (-1e4, 1e4), which holds all times


class Dit(NamedTuple):
    """A DiT and its parameters; `prefix`, of its official names in the case."""

    model: PromptedDiT
    params: Any
    prefix: str

    def __call__(self, params, z, t, condition):
        return velocity(self.model, params, z, t, condition)


@functools.partial(jax.jit, static_argnums=0)
def velocity(model, params, z, t, condition):
    return model.apply({"params": params}, z, t, condition)


@functools.cache
def dit_case(case):
    """The DiT of a case of the kind `scale_rae_dit`, whose arguments are those that its tensors tell."""
    constructor, prefix = case.constructor, "model."
    told_apart = constructor["dit"]["use_rope"] or constructor["dit"]["use_qknorm"]
    heads = None if told_apart else constructor["model_heads"]
    architecture, params, _ = scale_rae.import_dit(under(case.weights, prefix), heads)
    dit = Dit(PromptedDiT(**architecture), params, prefix)
    assert constructor["dit_cls"] == "DiT" and not constructor["use_mlp"] and constructor["cond_silu"]
    asked = constructor["dit"]
    assert asked["use_gembed"] and not asked["wo_shift"] and not asked["use_DDT"] and asked["cond_silu"]
    told = {"width": "hidden_size", "qk_norm": "use_qknorm", "swiglu": "use_swiglu", "rope": "use_rope"}
    told |= {"rms_norm": "use_rmsnorm", "condition_width": "z_channels"}
    for ours in ("in_channels", "depth", "num_heads", "patch_size"):
        told[ours] = ours
    for ours, theirs in told.items():
        assert getattr(dit.model, ours) == asked[theirs], ours
    assert dit.model.grid_size == asked["input_size"]
    return dit


def told(z):
    return TokenCondition(z, np.zeros(len(z), bool))


def official_gradients(dit, gradient):
    named = scale_rae.export_dit(gradient, vars(dit.model), frequencies=True)
    return {f"{dit.prefix}{name}": value for name, value in named.items()}


def shift_of(sizes):
    return dimension_shift(sizes["diffusion_tokens"] * sizes["diffusion_channels"], sizes["base_dim"])


@cases("scale_rae_dit")
def test_velocity_is_the_references(case):
    dit, call = dit_case(case), case.call("LightningDiT.forward")
    v = dit(dit.params, tokens(call.inputs["x"]), call.inputs["t"], told(call.inputs["y"]))
    case.assert_close(v, tokens(call.outputs["velocity"]))


@cases("scale_rae_dit")
def test_loss_and_gradients_are_the_references_with_conditions_dropped_and_not(case):
    dit = dit_case(case)

    def loss(params, z, x, noise, t, drop):
        v = dit(params, interpolate(x, noise, t), t, TokenCondition(z, drop))
        losses = jnp.mean(jnp.square(v - velocity_target(x, noise)), axis=(1, 2))
        return jnp.mean(losses), (losses, v)

    value = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    for call in case.calls("training_loss.*"):
        given = call.inputs
        drop = given.get("uniform", np.ones_like(given["t"])) < case.constructor["class_dropout_prob"]
        arguments = (given[name] for name in ("z", "x", "noise", "t"))
        (_, (losses, v)), (gradient, for_z) = value(dit.params, *arguments, drop)
        case.assert_close(losses, call.outputs["loss"])
        case.assert_close(v, call.outputs["prediction as tokens"])
        named = official_gradients(dit, gradient) | {"z": for_z}
        expected = call.gradients("mean")  # remarks in brackets are cut off: "grad of mean(loss) wrt z"
        expected = expected or {n.split(" wrt ")[1]: g for n, g in call.outputs.items() if n.startswith("grad of")}
        for name, gradient_of in expected.items():
            case.assert_gradient_close(named[name], gradient_of)


@cases("scale_rae_dit")
def test_times_in_training_are_the_references(case):
    times = jax.jit(lambda uniform, shift: shift_times(logit_normal_times(uniform), shift))
    for call in case.calls("get_timestep.*"):
        sizes = {"diffusion_tokens": 0, "diffusion_channels": 0, "base_dim": 0} | case.constructor | call.inputs
        uniform = ndtr(call.inputs["normal"].astype(np.float64)).astype(np.float32)
        case.assert_close(times(uniform, shift_of(sizes)), call.outputs["t"])


@functools.partial(jax.jit, static_argnums=0)
def guided_outside(model, params, z, t, asked, scale, interval, inside):
    """Guidance as Scale-RAE's code has it: `scale` outside the open interval, and inside it `inside` if above 1.

    Its sampler passes an interval that holds all times, and so does not guide at all: none of this is in the library.
    """
    with_and_without = TokenCondition(jnp.concatenate([asked, asked]), np.repeat([False, True], len(asked)))
    both = velocity(model, params, jnp.concatenate([z, z]), jnp.concatenate([t, t]), with_and_without)
    v, v_null = jnp.split(both, 2)
    scales = jnp.where((t > interval[0]) & (t < interval[1]), jnp.maximum(inside, 1.0), scale)
    return v_null + scales[:, None, None] * (v - v_null)


@cases("scale_rae_dit")
def test_guided_velocities_are_the_references(case):
    dit = dit_case(case)
    for call in case.calls("LightningDiT.forward_with_cfg.*"):
        given = call.inputs
        rows = given["rows_of_y"]
        x, t = tokens(given["x"])[:rows], np.full(rows, given["t"], np.float32)
        how = given["cfg_scale"], tuple(given.get("cfg_interval", NOWHERE)), given.get("interval_cfg", 0.0)
        v = guided_outside(dit.model, dit.params, x, t, given["y"][:rows], *how)
        case.assert_close(np.concatenate([v, v]), tokens(call.outputs["velocity"]))


@functools.partial(jax.jit, static_argnums=0)
def states_of(model, params, noise, times, asked, scale, interval):
    """All states as upstream's sampler has them, with guidance as its interval says."""

    def guided(z, t):
        return guided_outside(model, params, z, t, asked, scale, interval, 0.0)

    return samplers.euler_as_coded(guided, noise, times, trajectory=True)


def sample(dit, given, times, noise, asked):
    how = given["guidance_level"], tuple(given.get("cfg_interval", NOWHERE))
    return states_of(dit.model, dit.params, noise, np.asarray(times, np.float32), asked, *how)


@cases("scale_rae_dit")
def test_samples_are_the_references(case):
    dit = dit_case(case)
    for call in case.calls("infer.*"):
        given, out = call.inputs, call.outputs
        points = given.get("inference_step", case.constructor["inference_step"])
        times = sampling_times(points - 1, shift=shift_of(case.constructor), grid="scale_rae")
        rows, noise = given["rows_of_z"], given["x_end"]
        noise = tokens(noise) if noise.ndim == 4 else noise
        states = sample(dit, given, times, noise, given["z"][:rows])
        case.assert_close(states[-1], out["sample"])
        if "the 50 times, ascending" in out:
            case.assert_close(times[::-1], out["the 50 times, ascending"])
        if "state before every update, NCHW" in out:
            case.assert_close(states[:-1], tokens(out["state before every update, NCHW"]))
            case.assert_close([*times[1:-1], times[1]], out["time of every update"])
            case.assert_close([*times[2:], times[0]], out["next time of every update"])


@cases("scale_rae_dit")
def test_the_published_times_are_the_references(case):
    for call in case.calls(r"\d+ times with the sizes.*"):
        points = int(call.function.split()[0])
        times = sampling_times(points - 1, shift=shift_of(call.inputs), grid="scale_rae")
        case.assert_close(times[::-1], call.outputs["times, ascending"])


@cases("scale_rae_dit")
def test_the_frequencies_follow_from_the_published_seed(case):
    drawn = torch_normal(FREQUENCIES_SEED, 256)
    np.testing.assert_allclose(drawn, case.weights["model.t_embedder.W"], atol=2e-6)


def test_the_frequencies_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(5)
    np.testing.assert_allclose(torch_normal(5, 64), torch.randn(64, generator=generator).numpy(), atol=2e-6)


@cases("scale_rae_adapter")
def test_adapters_are_the_references(case):
    constructor = case.constructor
    architecture = scale_rae.adapter_architecture(case.weights)
    assert constructor["mm_projector_type"] == "mlp2x_gelu"
    assert architecture == {
        "features": constructor["mm_hidden_size"],
        "width": constructor["hidden_size"],
        "num_queries": constructor["tokens_per_image"],
        "condition_width": constructor["diffusion_model_z_channels"],
        "spatial_merge": 1,
    }
    model = Adapters(**architecture)
    params, _ = scale_rae.import_params(case.weights, scale_rae.adapter_rules())
    call = case.call("features from.*")
    features = LayerNorm(affine=False).apply({}, call.inputs["encoder_hidden"])
    case.assert_close(features, call.outputs["features"])
    call = case.call("mm_projector.*")
    seen = model.apply({"params": params}, call.inputs["features"], method="seen")
    case.assert_close(seen, call.outputs["image embeddings"])
    given = case.call("merge of.*").inputs | case.call("answer images.*").inputs
    queries = model.apply({"params": params}, method="asked_for")
    images = given["image_embeds"].reshape(len(given["text_embeds"]), -1, architecture["width"])
    for answers, expected in (
        (np.zeros_like(given["answer_token_mask"]), case.call("merge of.*").outputs["merged"]),
        (given["answer_token_mask"], case.call("answer images.*").outputs["merged with queries"]),
    ):
        case.assert_close(
            merged(given["text_embeds"], images, queries, given["vision_token_indices"], answers), expected
        )
    call = case.call("hidden states of.*")
    (expected,) = call.outputs.values()
    case.assert_close(gathered(call.inputs["hidden_states"], call.inputs["reverse_vti"]), expected)
    call = case.call("diff_head_projector")
    condition = model.apply({"params": params}, call.inputs["query_hidden"], method="condition")
    case.assert_close(condition, call.outputs["condition"])


def test_squares_of_tokens_are_read_as_one():
    features = np.random.default_rng(0).normal(size=(2, 36, 3)).astype(np.float32)
    model = Adapters(features=3, width=8, num_queries=36, condition_width=5, spatial_merge=2)
    params = random_params(model, features, np.zeros((2, 36, 8), np.float32))
    seen = model.apply({"params": params}, features, method="seen")
    assert seen.shape == (2, 9, 8)
    rows, columns = 2 * (5 // 3), 2 * (5 % 3)  # the corner of the sixth square
    square = [features[:, 6 * (rows + r) + columns + c] for r in (0, 1) for c in (0, 1)]
    alone = Adapters(features=12, width=8, num_queries=36, condition_width=5)
    expected = alone.apply({"params": params}, np.concatenate(square, axis=-1)[:, None], method="seen")
    np.testing.assert_allclose(seen[:, 5], expected[:, 0], rtol=1e-6)


def test_a_question_reads_the_merged_tokens_of_its_image_and_an_answer_stands_at_queries():
    tokenizer, layout = open_tokenizer(), Layout(120, 16, 2, tokens_read=4)
    turns = [{"from": "human", "value": "<image> and?"}, {"from": "gpt", "value": "<image>"}]
    sample = tables(tokenizer, *laid_out(tokenizer, turns, 2, layout), layout)
    features = np.random.default_rng(0).normal(size=(2, 16, 3)).astype(np.float32)
    language = LanguageModel(vocabulary=300, width=8, depth=1, num_heads=1, num_kv_heads=1, head_dim=8, hidden=8)
    reader = Reader(language, Adapters(features=3, width=8, num_queries=16, condition_width=5, spatial_merge=2))
    params = {
        "language_model": random_params(language, np.zeros((1, 2), np.int32)),
        "adapters": random_params(reader.adapters, features, np.zeros((2, 16, 8), np.float32)),
    }
    given = reader.input(params, features, {name: value[None] for name, value in sample.items()})
    inside = given[0][sample["input_ids"] == PLACEHOLDER]
    seen = reader.adapters.apply({"params": params["adapters"]}, features, method="seen")
    np.testing.assert_array_equal(inside, np.concatenate([seen[0], params["adapters"]["queries"]]))


class System(NamedTuple):
    """The parts of a whole system, their parameters, and the architecture that the file told."""

    reader: Reader
    dit: Dit
    params: dict[str, Any]
    model: Model
    features: Any


@functools.cache
def system(case):
    constructor = case.constructor
    assert constructor["vision_loss"] == "diffusion-loss" and constructor["vision_loss_mode"] == "query"
    assert constructor["mm_projector_type"] == "mlp2x_gelu" and constructor["hidden_act"] == "silu"
    tensors = {name: value for name, value in case.weights.items() if not name.startswith("vision_tower.")}
    model = scale_rae.read(
        tensors,
        num_heads=constructor["num_attention_heads"],
        rope_theta=constructor["rope_theta"],
        norm_epsilon=constructor["rms_norm_eps"],
        text_dit_heads=constructor["diffusion_model_heads"],
    )
    back = scale_rae.write(model)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    parts = model.architecture
    assert parts["text_dit"]["num_heads"] == constructor["diffusion_model_heads"]
    assert parts["language_model"]["tied"] == constructor["tie_word_embeddings"]

    encoder = case.description["encoder_config"]
    architecture, encoder_params, _ = import_encoder(
        under(case.weights, "vision_tower."), num_heads=encoder["num_attention_heads"]
    )
    encode = VisionTransformer(**architecture | {"norm_epsilon": encoder["layer_norm_eps"]})

    def features(pixels):
        return jax.jit(encode.apply)({"params": encoder_params}, nhwc(pixels.reshape(-1, *pixels.shape[-3:])))

    reader = Reader(LanguageModel(**parts["language_model"]), Adapters(**parts["adapters"]))
    dit = Dit(PromptedDiT(**parts["text_dit"]), model.params["text_dit"], "diff_head.model.")
    return System(reader, dit, model.params, model, features)


def training(parts, given, features, constructor):
    """`params, uniform -> (loss, everything on the way)` of a batch, as section 5 of the specification has it."""
    mask = given["answer_img_mask"].reshape(-1)

    def loss(params, uniform):
        x = parts.reader.input(params, features, given)
        hidden = parts.reader.hidden(params, x)
        logits = parts.reader.logits(params, hidden)
        losses = token_losses(logits, given["labels"])
        language = jnp.sum(losses) / np.sum(given["labels"][:, 1:] != -100)
        out = {"inputs": x, "hidden": hidden, "logits": logits, "token_losses": losses, "language": language}
        if "noise" not in given:
            return language, out | {"loss": language}
        condition = parts.reader.conditions(params, hidden, given["reverse_vti"])
        shift = dimension_shift(features.shape[1] * features.shape[2], constructor["diffusion_base_dim"])
        normal = given["normal"].reshape(-1)
        t = shift_times(logit_normal_times(jnp.asarray(ndtr(normal.astype(np.float64)), jnp.float32)), shift)
        noise = given["noise"].reshape(features.shape)
        x_t = interpolate(features, noise, t)
        dropped = uniform.reshape(-1) < constructor["diffusion_class_dropout_prob"]
        v = parts.dit(params["text_dit"], x_t, t, TokenCondition(condition, dropped))
        images = jnp.mean(jnp.square(v - velocity_target(features, noise)), axis=(1, 2))
        image = jnp.sum(images * mask) / (jnp.sum(mask) + 1e-8)
        total = language + constructor["vision_coef"] * image
        out |= {"condition": condition, "t": t, "x_t": x_t, "velocity": v, "images": images, "image": image}
        return total, out | {"loss": total}

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def assert_outputs(case, call, out, mask, names):
    seen = set()
    for name, expected in call.outputs.items():
        ours = next((ours for start, ours in names.items() if name.startswith(start)), None)
        if ours is not None:
            actual = np.asarray(out[ours])
            actual = actual * mask[..., None] if "0 at padding" in name else actual
            case.assert_close(actual.reshape(np.shape(expected)), expected)
            seen.add(ours)
    assert seen == set(names.values()), set(names.values()) - seen


def assert_gradients(case, call, parts, gradient):
    official = scale_rae.write(Model(parts.model.architecture, gradient, {}, parts.model.names))
    expected = call.gradients("loss")
    assert expected
    for name, value in expected.items():
        case.assert_gradient_close(official[name], value)


@cases("scale_rae_t2i")
def test_the_training_loss_and_its_gradients_are_the_references(case):
    parts = system(case)
    call = case.call("training forward, no condition dropout")
    given = call.inputs
    features = parts.features(given["pixel_values"])
    value, kept = training(parts, given, features, case.constructor), np.ones(len(features), np.float32)
    _, out = value(parts.params, kept)[0]
    names = {"normalised encoder features": "features", "inputs_embeds, 0 at padding": "inputs"}
    names |= {"last_hidden_state, 0 at padding": "hidden", "condition of every": "condition", "t from": "t"}
    names |= {"x_t": "x_t", "velocity": "velocity", "diffusion loss of every": "images", "cross-entropy": "language"}
    names |= {"diffusion loss": "image", "loss =": "loss"}
    assert_outputs(case, call, out | {"features": features}, given["attention_mask"], names)
    call = case.call("training forward in training mode.*")
    (_, out), gradient = value(parts.params, call.inputs["uniform"])
    names = {"diffusion loss of every": "images", "diffusion loss": "image", "loss": "loss"}
    assert_outputs(case, call, out, given["attention_mask"], names)
    assert_gradients(case, call, parts, gradient)


@cases("scale_rae_t2i")
def test_text_and_then_an_image_are_generated_as_the_reference_does(case):
    parts, constructor = system(case), case.constructor
    calls = case.calls("generate.*")
    prompt = np.atleast_2d(calls[0].inputs["input_ids"])
    start = int(np.ravel(calls[0].inputs["start_image_token_id"])[0])
    lengths = np.array([prompt.shape[1]])
    expected = next(out for name, out in calls[0].outputs.items() if name.startswith("generated ids"))

    @jax.jit
    def answer(params):
        embedded = parts.reader.embedded(params, prompt)
        return parts.reader.answer(params, embedded, lengths, image_start=start, turn_end=-1, most=len(expected) + 4)

    said = answer(parts.params)
    np.testing.assert_array_equal(said.ids[0, : said.lengths[0]], expected)
    assert bool(said.shows[0])
    case.assert_close(said.condition, calls[0].outputs["condition"])
    whole = np.concatenate([prompt[0], expected])[None]
    padded = np.pad(whole, ((0, 0), (0, 3)))  # what follows is not read
    at_once = jax.jit(parts.reader.asked)(parts.params, padded, np.array([whole.shape[1]]))
    case.assert_close(at_once, calls[0].outputs["condition"])
    grid = parts.dit.model
    shift = dimension_shift(grid.grid_size**2 * grid.in_channels, constructor["diffusion_base_dim"])
    for call in calls:
        times = sampling_times(call.inputs["inference_step"] - 1, shift=shift, grid="scale_rae")
        latents = sample(parts.dit, call.inputs, times, tokens(call.inputs["x_end_NCHW"]), said.condition)[-1]
        case.assert_close(latents.reshape(call.outputs["latents"].shape), call.outputs["latents"])
    call = case.call("LightningDiT.forward")
    v = parts.dit(
        parts.dit.params, tokens(call.inputs["x_NCHW"]), np.float32([call.inputs["t"]]), told(call.inputs["y"])
    )
    (expected,) = call.outputs.values()
    case.assert_close(v, tokens(expected))


@cases("scale_rae_understanding")
def test_the_loss_of_questions_and_its_gradients_are_the_references(case):
    parts, call = system(case), case.call("training forward")
    given = call.inputs
    features = parts.features(given["pixel_values"])
    (_, out), gradient = training(parts, given, features, case.constructor)(parts.params, None)
    seen = jax.jit(functools.partial(parts.reader.adapters.apply, method="seen"))
    seen = seen({"params": parts.params["adapters"]}, features)
    names = {"normalised encoder features": "features", "after mm_projector": "seen", "inputs_embeds": "inputs"}
    names |= {"last_hidden_state": "hidden", "logits": "logits", "loss of each": "token_losses"}
    names |= {"cross-entropy": "language", "loss": "loss"}
    assert_outputs(case, call, out | {"features": features, "seen": seen}, given["attention_mask"], names)
    assert_gradients(case, call, parts, gradient)


@cases("scale_rae_understanding")
def test_questions_about_images_and_latents_are_answered_as_the_reference_does(case):
    parts = system(case)

    @functools.partial(jax.jit, static_argnames="most")
    def answer(params, features, tables, most):
        x = parts.reader.input(params, features, tables)
        lengths = jnp.array([x.shape[1]])
        said = parts.reader.answer(params, x, lengths, image_start=-1, turn_end=-1, most=most)
        more = parts.reader.embedded(params, said.ids)
        hidden = parts.reader.hidden(params, jnp.concatenate([x, more], axis=1))
        return said, parts.reader.logits(params, hidden[:, x.shape[1] - 1 : -1])

    for call in case.calls("generate from.*"):
        given = call.inputs
        if "pixel_values" in given:
            features = parts.features(given["pixel_values"][: given["rows_of_pixel_values"]])
        else:
            features = given["image_embeds"]
        ids = np.ravel(given["input_ids"])
        repeats = np.where(ids == -200, features.shape[1], 1)
        ids = np.repeat(ids, repeats)[None]
        where = np.flatnonzero(ids[0] == -200)
        sources = np.arange(ids.shape[1])[None]
        sources[0, where] = ids.shape[1] + np.arange(len(where))
        tables = {"input_ids": ids, "vision_token_indices": sources, "answer_token_mask": np.zeros_like(ids)}
        expected = call.outputs["ids"]
        most = len(expected)

        said, logits = answer(parts.params, features, tables, most=most)
        np.testing.assert_array_equal(said.ids[0], expected)
        case.assert_close(logits[0], call.outputs["logits of every step"], atol=case.noted("absolute"), rtol=0)


TINY = {"grid_size": 4, "in_channels": 4, "condition_width": 20, "width": 24, "depth": 2, "num_heads": 2}


def tiny_inputs(batch=2):
    rng = np.random.default_rng(1)
    z, asked = (rng.normal(size=(batch, 16, width)).astype(np.float32) for width in (4, 20))
    return z, np.linspace(0.2, 0.9, batch, dtype=np.float32), told(asked)


def test_patches_of_two_and_a_second_time_change_shapes_as_they_should():
    z, t, condition = tiny_inputs()
    model = PromptedDiT(**TINY | {"patch_size": 2, "flow_map": True})
    condition = TokenCondition(condition.tokens[:, :4], condition.dropped)
    params = random_params(model, z, t, condition, t)
    assert jax.eval_shape(model.apply, {"params": params}, z, t, condition, t / 2).shape == z.shape
    with pytest.raises(ValueError, match="a condition of 16 tokens for a grid of 2 x 2"):
        jax.eval_shape(model.apply, {"params": params}, z, t, told(np.zeros((2, 16, 20), np.float32)), t)


def test_initial_velocity_is_zero_and_every_matrix_is_divided():
    z, t, condition = tiny_inputs()
    model = PromptedDiT(**TINY)
    v, variables = jax.jit(model.init_with_output)(jax.random.key(0), z, t, condition)
    boxed = variables["params"]
    params = meta.unbox(boxed)
    assert not np.any(v)
    assert not np.any(params["null_condition"])
    np.testing.assert_array_equal(params["time_embedding"]["frequencies"], torch_normal(FREQUENCIES_SEED, 256))
    adapters = Adapters(4, 16, 16, 20)
    boxes = [boxed, jax.eval_shape(adapters.init, jax.random.key(0), z, jnp.zeros((2, 16, 16)))["params"]]
    for box in jax.tree.leaves(boxes, is_leaf=lambda x: isinstance(x, meta.AxisMetadata)):
        assert len(box.names) == box.value.ndim and set(box.names) - {None} <= {axis for axis, _ in RULES}
        assert box.value.ndim < 2 or set(box.names) - {None}


def test_adapters_start_as_published():
    adapters = Adapters(64, 256, 100, 512)
    init = jax.jit(adapters.init)
    params = meta.unbox(init(jax.random.key(0), np.zeros((1, 2, 64)), np.zeros((1, 2, 256)))["params"])
    deviations = {"queries": 256**-0.5, "to_condition/kernel": 0.02, "project_hidden/kernel": (3 * 64) ** -0.5}
    for path, deviation in deviations.items():
        assert np.std(flatten(params)[path]) == pytest.approx(deviation, rel=0.02), path
    assert not np.any(params["to_condition"]["bias"]) and np.any(params["project_out"]["bias"])


def test_the_published_sizes_have_as_many_parameters_as_they_say():
    counts = {"0.5B": 0.48, "2.4B": 2.43, "3.1B": 3.08, "5.5B": 5.48, "9.8B": 9.73}
    shapes = (np.zeros((1, 256, 1152), np.float32), np.zeros(1, np.float32))
    for name, size in SIZES.items():
        model = PromptedDiT(grid_size=16, in_channels=1152, condition_width=size["width"], scan=True, **size)
        condition = told(np.zeros((1, 256, size["width"]), np.float32))
        leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), *shapes, condition))
        assert sum(leaf.size for leaf in leaves) / 1e9 == pytest.approx(counts[name], abs=0.006), name


def test_prompts_of_several_lengths_are_each_read_as_if_alone():
    language = LanguageModel(vocabulary=11, width=8, depth=1, num_heads=2, num_kv_heads=1, head_dim=4, hidden=8)
    reader = Reader(language, Adapters(4, 8, 3, 6))
    params = {
        "language_model": random_params(language, np.zeros((1, 2), np.int32), std=0.5),
        "adapters": random_params(reader.adapters, np.zeros((1, 3, 4)), np.zeros((1, 3, 8)), std=0.5),
    }
    ids, lengths = np.random.default_rng(0).integers(0, 11, (3, 6)), np.array([6, 2, 4])

    @jax.jit
    def read(params):
        rows = [(ids[i : i + 1, :length], lengths[i : i + 1]) for i, length in enumerate(lengths)]
        return reader.asked(params, ids, lengths), [reader.asked(params, *row) for row in rows]

    together, alone = read(params)
    for row in range(len(ids)):
        np.testing.assert_allclose(together[row], alone[row][0], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
