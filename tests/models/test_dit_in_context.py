"""RAEv2's generator against the reference's outputs, and what must hold of it whatever its weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from golden import cases, tokens
from golden_modules import architecture_in_context, in_context, told_in_context
from random_params import random_params

from rae_jax.interop import dit_in_context, kinds
from rae_jax.interop.checkpoint_files import read_tensors
from rae_jax.interop.layout import flatten, stack_blocks
from rae_jax.interop.model import Model
from rae_jax.models.dit_in_context import DiTInContext

IN_CONTEXT = ("raev2_dit", "raev2_loss", "raev2_sampling", "raev2_t2i")
TINY = {"grid_size": 4, "in_channels": 4, "num_classes": 3, "width": 24, "depth": 2, "num_heads": 2}
TINY |= {"head_width": 32, "head_depth": 1, "head_num_heads": 4, "base_depth": 1}
TEXT = TINY | {"num_classes": 0, "context_width": 6, "condition_tokens": 5}


def inputs(batch=2, text=False):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(batch, TINY["grid_size"] ** 2, TINY["in_channels"])).astype(np.float32)
    told = np.arange(batch, dtype=np.int32) % (TINY["num_classes"] + 1)
    if text:
        features = rng.normal(size=(batch, TEXT["condition_tokens"], TEXT["context_width"])).astype(np.float32)
        told = {"features": features, "mask": (np.arange(5)[None] < np.arange(batch)[:, None] + 1).astype(np.int32)}
    return z, np.linspace(0.2, 0.9, batch, dtype=np.float32), told


def told(call):
    """The condition of an official call, in our terms."""
    if call.inputs["attn_mask"] is None:
        return call.inputs["context"]
    return {"features": call.inputs["context"], "mask": call.inputs["attn_mask"]}


def block_outputs(captured, name):
    """The outputs of a stack of blocks, in their order."""
    names = sorted((n for n in captured if n.startswith(name + "_")), key=lambda n: int(n.rpartition("_")[2]))
    return np.stack([captured[n]["__call__"][0] for n in names])


def head_condition(inside):
    """The projected condition of the head; where the widths are equal there is no projection."""
    if "head_projection" in inside:
        return inside["head_projection"]["__call__"][0]
    image = block_outputs(inside, "head_blocks").shape[2]
    time = inside["time_embedding"]["__call__"][0][:, None]
    return jax.nn.silu(time + block_outputs(inside, "blocks")[-1][:, :image])


# The outputs of the official calls, from ours and from what its modules returned.
WHERE = {
    "full": lambda out, inside: out.full,
    "base": lambda out, inside: out.base,
    "repa projection, tokens": lambda out, inside: out.aligned,
    "t_embedder, before the learnable tokens are added": lambda out, inside: inside["time_embedding"]["__call__"][0],
    "time tokens": lambda out, inside: inside["time_tokens"]["__call__"][0],
    "class tokens": lambda out, inside: inside["class_tokens"]["__call__"][0],
    "text tokens: proj(norm(context))": lambda out, inside: inside["context_projection"]["__call__"][0],
    "output of every trunk block, all tokens, stacked": lambda out, inside: block_outputs(inside, "blocks"),
    "condition of the head, after s_projector": lambda out, inside: head_condition(inside),
    "output of every head block, stacked": lambda out, inside: block_outputs(inside, "head_blocks"),
}


@cases(*IN_CONTEXT, where=lambda case: case.calls("forward.*"))
def test_both_outputs_the_projection_and_all_on_the_way_are_the_references(case):
    model, _, params, _, _ = in_context(case)
    apply = jax.jit(functools.partial(model.apply, capture_intermediates=True))
    expected = {"full", "base"} | ({"repa projection, tokens"} if case.constructor["enable_repa"] else set())
    for call in case.calls("forward.*"):
        arguments = tokens(call.inputs["x"]), call.inputs["t"], told(call)
        out, state = apply({"params": params}, *arguments)
        for name, value in call.outputs.items():
            actual = np.asarray(WHERE[name](out, state["intermediates"]))
            if name.startswith("text"):  # of padding nothing is seen
                seen = np.asarray(told(call)["mask"], bool)
                actual, value = actual[seen], value[seen]
            case.assert_close(actual, tokens(value) if name in ("full", "base") else value)
            expected.discard(name)
    assert not expected


@cases("raev2_dit", "raev2_t2i")
def test_a_scanned_stack_keeps_the_same_states(case):
    params = in_context(case).params
    scanned = in_context(case, scan=True, remat="full").model
    call = max(case.calls("forward.*"), key=lambda call: "repa projection, tokens" in call.outputs)
    arguments = tokens(call.inputs["x"]), call.inputs["t"], told(call)
    structure = meta.unbox(jax.eval_shape(scanned.init, jax.random.key(0), *arguments)["params"])
    out = jax.jit(scanned.apply)({"params": stack_blocks(params, structure)}, *arguments)
    for name in ("full", "base"):
        case.assert_close(getattr(out, name), tokens(call.outputs[name]))
    aligned = call.outputs.get("repa projection, tokens")
    assert (out.aligned is None) == (aligned is None)
    if aligned is not None:
        case.assert_close(out.aligned, aligned)


@cases(*IN_CONTEXT)
def test_a_checkpoint_fits_its_module_exactly_and_comes_back_as_the_same_tensors(case, tmp_path):
    model, _, params, architecture, carried = in_context(case)
    assert {name: architecture[name] for name in architecture_in_context(case)} == architecture_in_context(case)
    label = {"features": np.zeros((1, architecture["condition_tokens"], architecture["context_width"]))}
    label = label | {"mask": np.ones((1, architecture["condition_tokens"]))} if architecture["context_width"] else 0
    latents = np.zeros((1, architecture["grid_size"] ** 2, architecture["in_channels"]))
    asked = np.zeros(1, np.int32) if label == 0 else label
    like = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), latents, np.ones(1), asked)["params"])
    assert {k: v.shape for k, v in flatten(like).items()} == {k: v.shape for k, v in flatten(params).items()}

    prefix = "model." if any(name.startswith("model.") for name in case.weights) else ""
    official = case.weights_under(prefix)
    assert kinds.identify(official) == "dit_in_context"
    for back in (
        dit_in_context.write(Model(architecture, params, carried)),
        kinds.export_model("dit_in_context", Model(architecture, params)),
    ):
        assert back.keys() == official.keys()
        for name, w in official.items():
            # Computed cosines and sines are equal to the last bit or the one before, as libraries differ.
            atol = 6e-8 if "_rope." in name else 0
            np.testing.assert_allclose(back[name], w, rtol=0, atol=atol, err_msg=name)

    torch = pytest.importorskip("torch")  # as the released trainer writes it
    entry = {name: torch.from_numpy(w.copy()) for name, w in official.items()}
    optimizer = {"muon": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 2e-4}]}}
    zeros = {name: torch.zeros_like(w) for name, w in entry.items()}
    whole = {"step": 3, "epoch": 1, "model": zeros, "ema": entry, "optimizer": optimizer, "scheduler": {"base": [0.1]}}
    torch.save(whole, tmp_path / "ep-0000001.pt")
    read = kinds.import_model("dit_in_context", read_tensors(tmp_path / "ep-0000001.pt"), **told_in_context(case))
    jax.tree.map(np.testing.assert_array_equal, read.params, params)


@cases("raev2_dit")
def test_damaged_checkpoints_are_refused_with_names(case):
    official, options = dict(case.weights), told_in_context(case)
    for name in ("blocks.0.attn.k.weight", "ctx_embedder.learnable_tokens", "base_final_layer.norm.weight"):
        damaged = {n: w for n, w in official.items() if n != name}
        with pytest.raises(ValueError, match=f"missing    {name}"):
            kinds.import_model("dit_in_context", damaged, **options)
    moved = official | {"enc_rope.freqs_sin": official["enc_rope.freqs_sin"] + 0.1}
    with pytest.raises(ValueError, match=r"enc_rope\.freqs_sin in the file is not the fixed one"):
        kinds.import_model("dit_in_context", moved, **options)
    with pytest.raises(ValueError, match="look like those of kind 'dit_in_context'"):
        kinds.import_model("lightning_dit", official)


def test_words_that_are_masked_change_nothing_and_others_do():
    z, t, asked = inputs(text=True)
    model = DiTInContext(**TEXT)
    params, apply = random_params(model, z, t, asked), jax.jit(model.apply)
    out = apply({"params": params}, z, t, asked)
    for seen in (0, 1):
        here = asked["mask"][..., None] == seen
        other = asked | {"features": np.where(here, asked["features"] + 1, asked["features"])}
        moved = np.abs(apply({"params": params}, z, t, other).full - out.full).max()
        assert (moved > 1e-3) == bool(seen)


def test_a_flow_map_is_told_both_times_by_tokens_and_in_the_head():
    z, t, labels = inputs()
    model = DiTInContext(**TINY, flow_map=True)
    params = random_params(model, z, t, labels, t)
    without = flatten(random_params(DiTInContext(**TINY), z, t, labels))
    more = flatten(params).keys() - without.keys()
    assert {path.partition("/")[0] for path in more} == {"duration_embedding", "duration_tokens"}
    apply = jax.jit(model.apply)
    u, other = (apply({"params": params}, z, t, labels, r).full for r in (t, t / 2))
    assert np.abs(u - other).max() > 1e-4
    with pytest.raises(ValueError, match="r is missing"):
        jax.eval_shape(model.apply, {"params": params}, z, t, labels)


def test_bfloat16_leaves_parameters_and_outputs_float32_and_the_values_close():
    z, t, labels = inputs()
    model = DiTInContext(**TINY, dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), z, t, labels)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    params = random_params(model, z, t, labels)
    exact = jax.jit(DiTInContext(**TINY).apply)({"params": params}, z, t, labels)
    for actual, expected in zip(jax.jit(model.apply)({"params": params}, z, t, labels)[:2], exact[:2], strict=True):
        assert actual.dtype == jnp.float32
        assert 0 < np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("trained", [True, False])
def test_frequencies_get_a_gradient_where_they_are_trained(trained):
    z, t, labels = inputs()
    model = DiTInContext(**TINY | {"depth": 1}, trained_frequencies=trained)
    params = random_params(model, z, t, labels)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, z, t, labels).full ** 2)))(params)
    assert np.any(gradient["time_embedding"]["frequencies"]) == trained


def test_every_parameter_names_its_axes_and_no_matrix_is_without_a_divisible_one():
    z, t, asked = inputs(text=True)
    for fields, told in ((TINY, np.zeros(2, np.int32)), (TEXT, asked)):
        model = DiTInContext(**fields, flow_map=True, scan=True, alignment_depth=1, alignment_features=8)
        boxed = jax.eval_shape(model.init, jax.random.key(0), z, t, told, t)["params"]
        for box in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, meta.AxisMetadata)):
            assert isinstance(box, meta.AxisMetadata) and len(box.names) == box.value.ndim
            assert box.value.ndim < 2 + ("layers" in box.names) or set(box.names) - {None, "layers"}


def test_mistakes_are_refused_by_name():
    z, t, labels = inputs()
    for change, message in [
        ({"grid_size": 5}, r"needs \[B, 25, C\]"),
        ({"num_heads": 5}, "width 24 does not divide over 5 heads"),
        ({"base_depth": 3}, "x is wanted after .* of the 2 blocks of 'blocks'"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(DiTInContext(**TINY | change).init, jax.random.key(0), z, t, labels)
    _, _, asked = inputs(text=True)
    with pytest.raises(ValueError, match="condition_tokens words of context_width"):
        jax.eval_shape(DiTInContext(**TEXT | {"condition_tokens": 4}).init, jax.random.key(0), z, t, asked)
