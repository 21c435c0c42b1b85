"""Language models against transformers, recorded and live; what they write against what they would score."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from golden import cases
from random_params import random_params

from rae_jax.interop import kinds, language_model
from rae_jax.interop.layout import flatten, stack_blocks
from rae_jax.interop.model import Model
from rae_jax.models.language_model import (
    SIZES,
    LanguageModel,
    Sampling,
    choose,
    empty_cache,
    rotary_angles,
    token_losses,
    write,
)
from rae_jax.training.sharding import RULES

TINY = {"vocabulary": 31, "width": 16, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "hidden": 20}
QWEN3 = {"qkv_bias": False, "qk_norm": True, "tied": False}


@functools.cache
def built(case):
    """The model of a golden case and its parameters."""
    constructor = case.constructor
    assert constructor["hidden_act"] == "silu" and not constructor["attention_dropout"]
    read = kinds.import_model(
        "qwen",
        case.weights,
        num_heads=constructor["num_attention_heads"],
        rope_theta=constructor["rope_theta"],
        norm_epsilon=constructor["rms_norm_eps"],
    )
    assert read.architecture["tied"] == constructor["tie_word_embeddings"]
    assert read.architecture["vocabulary"] == constructor["vocab_size"]
    assert read.architecture["num_kv_heads"] == constructor["num_key_value_heads"]
    return LanguageModel(**read.architecture), read.params


def scores(model, params, *args, **kwargs):
    """`(last hidden state, logits)`."""

    def run(params):
        hidden = model.apply({"params": params}, *args, **kwargs)
        return hidden, model.apply({"params": params}, hidden, method=LanguageModel.logits)

    return jax.jit(run)(params)


def tiny(**options):
    model = LanguageModel(**TINY | options)
    return model, random_params(model, np.zeros((1, 3), np.int32), std=0.3)


def ids_of(batch, length):
    return np.random.default_rng(1).integers(0, TINY["vocabulary"], (batch, length))


@cases("qwen2_decoder")
def test_hidden_states_and_logits_are_the_references(case):
    model, params = built(case)
    call = case.call("forward with attention mask")
    mask = call.inputs["attention_mask"]
    hidden, logits = scores(model, params, call.inputs["input_ids"], mask=mask)
    case.assert_close(hidden * mask[..., None], call.outputs["last_hidden_state"])
    case.assert_close(logits * mask[..., None], call.outputs["logits"])
    call = case.call("forward from embeddings, no mask")
    hidden, logits = scores(model, params, embeddings=call.inputs["inputs_embeds"])
    case.assert_close(hidden, call.outputs["last_hidden_state"])
    case.assert_close(logits, call.outputs["logits"])


@cases("raev2_t2i")
def test_the_features_of_a_text_are_the_last_hidden_states_of_qwen3(case):
    config = case.description["text_model_config"]
    assert not config["attention_bias"] and config["tie_word_embeddings"]
    told = dict(rope_theta=config["rope_theta"], norm_epsilon=config["rms_norm_eps"])
    found = language_model.read(case.weights_under("text_model."), **told)
    model = LanguageModel(**found.architecture)
    assert (model.num_heads, model.num_kv_heads) == (config["num_attention_heads"], config["num_key_value_heads"])
    call = case.call("TextEncoder.*")
    mask = call.inputs["attention_mask"]
    features = jax.jit(model.apply)({"params": found.params}, call.inputs["input_ids"], mask=mask)
    case.assert_close(features * mask[..., None], call.outputs["tokens"] * mask[..., None])
    back = language_model.write(found)
    assert back.keys() == case.weights_under("text_model.").keys()


@cases("qwen2_decoder")
def test_the_loss_of_the_next_token_and_its_gradients_are_the_references(case):
    model, params = built(case)
    call = case.call("cross-entropy of the next token")

    def loss(params):
        hidden = model.apply({"params": params}, call.inputs["input_ids"], mask=call.inputs["attention_mask"])
        logits = model.apply({"params": params}, hidden, method=LanguageModel.logits)
        losses = token_losses(logits, call.inputs["labels"])
        return jnp.sum(losses) / np.sum(call.inputs["labels"][:, 1:] != -100), losses

    (value, losses), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    case.assert_close(losses, call.outputs["loss of each shifted position, 0 where the label is -100"])
    case.assert_close(value, call.outputs["loss"])
    official = language_model.write(Model(vars(model), gradient))
    expected = call.gradients("loss")
    assert expected
    for name, value in expected.items():
        case.assert_gradient_close(official[name], value)


@cases("qwen2_decoder")
def test_rotary_tables_are_the_references(case):
    call = case.call("rotary tables")
    constructor = case.constructor
    head_dim = constructor["hidden_size"] // constructor["num_attention_heads"]
    tables = jax.jit(lambda positions: rotary_angles(positions, head_dim, constructor["rope_theta"]))
    for angles, name in zip(tables(np.arange(call.inputs["positions"])), ("cos", "sin"), strict=True):
        case.assert_close(np.tile(angles, 2), call.outputs[name])


@cases("qwen2_decoder")
def test_greedy_decoding_writes_the_references_tokens(case):
    model, params = built(case)
    for call in case.calls("greedy decoding.*"):
        new, given = (int(call.function.split(word)[1].split()[0]) for word in ("decoding,", "first"))
        row = int(call.function.split("of row")[1])
        prompt = call.inputs["input_ids"][row : row + 1, :given]
        embedded = params["embedding"][prompt]
        written = jax.jit(functools.partial(write, model, most=new))(params, embedded, np.array([given]))
        np.testing.assert_array_equal(np.concatenate([prompt, written.ids], 1), call.outputs["ids"])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("Qwen2", {"num_key_value_heads": 4, "tie_word_embeddings": False, "rope_theta": 5e4}),
        ("Qwen3", {"num_key_value_heads": 2, "tie_word_embeddings": True, "head_dim": 10, "rms_norm_eps": 1e-5}),
        ("Qwen3", {"num_key_value_heads": 4, "tie_word_embeddings": False, "head_dim": 6}),
    ],
    ids=str,
)
def test_logits_and_greedy_tokens_are_transformers(kind, options):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theta = options.get("rope_theta", 1e6)
    config = getattr(transformers, f"{kind}Config")(
        **{"vocab_size": 31, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": theta}},
        **{name: value for name, value in options.items() if name != "rope_theta"},
    )
    torch.manual_seed(0)
    reference = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape) + ("norm" in name))
    tensors = {name: value.numpy() for name, value in reference.state_dict().items()}
    read = kinds.import_model("qwen", tensors, num_heads=4, rope_theta=theta, norm_epsilon=config.rms_norm_eps)
    back = kinds.export_model("qwen", read)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    model = LanguageModel(**read.architecture)
    ids, mask = ids_of(2, 9), np.ones((2, 9), int)
    mask[1, 6:] = 0
    with torch.no_grad():
        expected = reference(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
        greedy = reference.generate(
            torch.tensor(ids[:1]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    logits = scores(model, read.params, ids, mask=mask)[1]
    np.testing.assert_allclose(logits[mask > 0], expected[mask > 0], atol=2e-5, rtol=2e-4)
    embedded = read.params["embedding"][ids[:1]]
    written = jax.jit(functools.partial(write, model, most=8))(read.params, embedded, np.array([9]))
    np.testing.assert_array_equal(written.ids, greedy[:, 9:])


@pytest.mark.parametrize("options", [{}, {"scan": True, **QWEN3}], ids=str)
def test_a_padded_batch_is_written_as_each_row_without_a_cache_and_stops_at_its_own_end(options):
    model, params = tiny()
    model, params = (model, params) if not options else tiny(**options)
    ids, lengths, most = ids_of(3, 7), np.array([7, 4, 5]), 6
    run = jax.jit(functools.partial(write, model, most=most))
    written = run(params, params["embedding"][ids], lengths, stop=np.array([-1]))  # there is none
    forward = jax.jit(
        lambda ids: model.apply({"params": params}, model.apply({"params": params}, ids), method="logits")
    )
    for row, length in enumerate(lengths):
        context = np.zeros((1, 7 + most), int)
        context[0, :length] = ids[row, :length]
        for i in range(most):  # what stands to the right of a token changes nothing for it
            context[0, length + i] = np.argmax(forward(context)[0, length + i - 1])
        np.testing.assert_array_equal(written.ids[row], context[0, length : length + most])
    stop = int(written.ids[0, 2])
    stopped = run(params, params["embedding"][ids], lengths, stop=np.array([stop]))
    for row in range(3):
        all_of_it = np.asarray(written.ids[row])
        end = int(np.argmax(all_of_it == stop)) + 1 if stop in all_of_it else most
        assert stopped.lengths[row] == end
        np.testing.assert_array_equal(stopped.ids[row, :end], all_of_it[:end])
        assert not np.any(stopped.ids[row, end:])


def test_drawing_follows_the_distribution_that_top_k_and_top_p_leave():
    logits = np.log(np.float32([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(lambda keys, how: choose(jnp.broadcast_to(logits, (len(keys), 4)), keys, how), static_argnums=1)

    def frequencies(**how):
        return np.bincount(draw(keys, Sampling(**how)), minlength=4) / len(keys)

    assert frequencies(temperature=1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert frequencies(temperature=1.0, top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert frequencies(temperature=1.0, top_p=0.79) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert frequencies(temperature=1.0, top_p=0.81) == pytest.approx([0.526, 0.316, 0.158, 0], abs=0.03)
    assert frequencies(temperature=0.5, top_k=2) == pytest.approx([0.735, 0.265, 0, 0], abs=0.03)


def test_a_drawn_row_depends_on_its_key_alone():
    model, params = tiny()
    ids, keys = ids_of(2, 4), jax.random.split(jax.random.key(3), 2)
    run = jax.jit(functools.partial(write, model, most=5, how=Sampling(temperature=1.0)))
    together = run(params, params["embedding"][ids], np.array([4, 4]), keys=keys).ids
    swapped = run(params, params["embedding"][ids[::-1]], np.array([4, 4]), keys=keys[::-1]).ids
    np.testing.assert_array_equal(together, swapped[::-1])


def test_a_scanned_rematerialised_stack_has_the_value_and_gradient_of_the_unrolled_one():
    model, params = tiny(**QWEN3)
    scanned = LanguageModel(**TINY, **QWEN3, scan=True, remat="full")
    ids = ids_of(2, 5)
    structure = meta.unbox(jax.eval_shape(scanned.init, jax.random.key(0), ids)["params"])

    def loss(model):
        return lambda p: jnp.sum(model.apply({"params": p}, ids) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(loss(model)))(params)
    stacked_value, stacked_gradient = jax.jit(jax.value_and_grad(loss(scanned)))(stack_blocks(params, structure))
    np.testing.assert_allclose(stacked_value, value, rtol=1e-6)
    expected = flatten(stack_blocks(gradient, structure))
    for path, leaf in flatten(stacked_gradient).items():
        np.testing.assert_allclose(leaf, expected[path], atol=1e-4 * np.abs(expected[path]).max() + 1e-7, err_msg=path)


def test_every_matrix_of_every_size_is_divided_and_counts_as_published():
    published = {"qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688}
    published |= {"qwen2.5-7b": 7_615_616_512, "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976}
    published |= {"qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360}
    for name, size in SIZES.items():
        shapes = jax.eval_shape(
            LanguageModel(**size, scan=True).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32)
        )["params"]
        boxes = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
        for box in boxes:
            assert isinstance(box, meta.AxisMetadata) and len(box.names) == box.value.ndim
            assert set(box.names) - {None} <= {axis for axis, _ in RULES}
            assert box.value.ndim - ("layers" in box.names) < 2 or set(box.names) - {None, "layers"}
        assert sum(box.value.size for box in boxes) == published[name], name


def test_bfloat16_leaves_parameters_and_outputs_float32_and_the_cache_half_as_large():
    model, params = tiny()
    half = LanguageModel(**TINY, dtype=jnp.bfloat16)
    (hidden, logits), (_, exact) = scores(half, params, ids_of(2, 5)), scores(model, params, ids_of(2, 5))
    assert hidden.dtype == logits.dtype == jnp.float32
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()
    cache = jax.eval_shape(lambda: empty_cache(half, 2, 9))
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(jnp.bfloat16)}


def test_wrong_inputs_are_refused():
    model, params = tiny()
    with pytest.raises(ValueError, match="either ids or embeddings"):
        jax.eval_shape(model.apply, {"params": params})
    with pytest.raises(ValueError, match="a mask cannot be given"):
        variables = {"params": params, "cache": jax.eval_shape(lambda: empty_cache(model, 1, 3))}
        apply = functools.partial(model.apply, mask=np.ones((1, 3)), mutable=["cache"])
        jax.eval_shape(apply, variables, ids_of(1, 3))
