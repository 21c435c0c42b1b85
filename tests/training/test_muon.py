"""Muon against the released optimizer, and against itself in other layouts and over several devices."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import runs
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict
from golden import cases
from golden_modules import in_context

from configs import base
from rae_jax.interop import dit_in_context
from rae_jax.interop.layout import stack_blocks, unstack_blocks
from rae_jax.interop.model import Model
from rae_jax.training.muon import COEFFICIENTS, orthogonalised
from rae_jax.training.optimizer import make_optimizer

PRESETS = {"POLAR_EXPRESS_COEFFICIENTS": "polar_express", "YOU_COEFFICIENTS": "you"}
OUTPUTS = {"released": "y", "float32": "the same without half precision"}
NOTES = {"released": r"for ns\*\.y ([\d.]+)", "float32": r"y_float32: ([\de.-]+)"}


def optimizer_of(call, products):
    """Our optimizer for a call of the official `build_optimizer`, whose scheduler overwrites the rates."""
    official, scheduler = call.inputs["optimizer"], call.inputs["scheduler"]
    assert official["type"] == "gmuon" and not official["ns_use_kernels"]
    section = base.optimizer()
    section.name, section.muon_products = "muon", products
    section.learning_rate = official["lr"]
    (section.beta1, section.beta2), section.epsilon = official["betas"], official["eps"]
    section.muon_momentum, section.muon_nesterov = official["momentum"], official["nesterov"]
    section.weight_decay, section.clip_norm = official["weight_decay"], call.inputs["clip_grad"] or 0.0
    section.muon_coefficients = PRESETS[official["ns_coefficients_preset"]]
    if scheduler:
        section.shape, section.warmup_from_zero = scheduler["type"], scheduler["warmup_from_zero"]
        section.learning_rate, section.final_learning_rate = scheduler["base_lr"], scheduler["final_lr"]
        section.warmup_steps = scheduler["warmup_epochs"] * scheduler["steps_per_epoch"]
        section.decay_end_step = scheduler["decay_end_epoch"] * scheduler["steps_per_epoch"]
    return make_optimizer(section)


def ours(name, tensor):
    """Our path of an official tensor, and how `[..., *shape]` of it are laid out."""
    stem = name.removesuffix(".weight").replace(".", "_")
    if "table" in name:
        return f"{stem}/embedding", lambda w: w
    if name.endswith("tokens"):
        return f"{stem}/tokens", lambda w: w
    if tensor.ndim == 4:
        return f"{stem}/patch_embedding/kernel", lambda w: w.reshape(*w.shape[:-3], -1).swapaxes(-1, -2)
    if tensor.ndim == 2:
        return f"{stem}/kernel", lambda w: w.swapaxes(-1, -2)
    return f"{stem}/scale", lambda w: w


def resolved(case, tensors):
    return {name: case.io[at[1:]] for name, at in tensors.items()}


def nested(tensors):
    return unflatten_dict(tensors, sep="/")


def allowed(case, pattern):
    """The number that the note on the tolerance has there."""
    return float(re.search(pattern, case.description["tolerance"]["note"])[1])


@pytest.mark.parametrize("products", ["released", "float32", "bfloat16_3x"])
@cases("raev2_muon")
def test_parameters_momentum_and_rates_are_the_references(case, products):
    for call in case.calls("build_optimizer, then steps"):
        start = resolved(case, call.inputs["parameters before"])
        places = {name: ours(name, w) for name, w in start.items()}

        def laid_out(tensors, places=places):
            return {name: places[name][1](w) for name, w in resolved(case, tensors).items()}

        gradients = laid_out(call.inputs["gradients of every step, stacked"])
        expected = laid_out(call.outputs["parameters after every step, stacked"])
        if products != "released":
            expected |= laid_out(call.outputs["the same without half precision"])
        optimizer, rate = optimizer_of(call, products)
        before = laid_out(call.inputs["parameters before"])
        params = nested({places[name][0]: w for name, w in before.items()})

        @jax.jit
        def step(now, state, params, i, optimizer=optimizer, rate=rate):
            updates, state = optimizer.update(now, state, params)
            return optax.apply_updates(params, updates), state, rate(i), optax.tree.norm(now)

        state = jax.jit(optimizer.init)(params)
        rates = call.outputs["learning rates of the step: Muon group, AdamW group"]
        for i, official_rates in enumerate(rates):
            now = nested({places[name][0]: g[i] for name, g in gradients.items()})
            params, state, rate_now, norm = step(now, state, params, i)
            case.assert_close([rate_now] * 2, official_rates)
            if (norms := call.outputs.get("gradient norm before clipping")) is not None:
                case.assert_close(norm, norms[i])
            for name, w in expected.items():
                moved = sum(r[0] for r in rates[: i + 1]) * 0.2 * max(start[name].shape) ** 0.5
                half = products == "released" and start[name].ndim == 2
                atol = {"atol": allowed(case, r"allow ([\d.]+) \* lr") * moved} if half else {}
                case.assert_close(flatten_dict(params, sep="/")[places[name][0]], w[i], **atol)
        for name, w in laid_out(call.outputs.get("momentum buffers after the last step", {})).items():
            case.assert_close(state[-1].momentum[places[name][0]], w)


@pytest.mark.parametrize("products", OUTPUTS)
@cases("raev2_muon")
def test_orthogonalised_matrices_are_the_references(case, products):
    calls = case.calls("GramNewtonSchulz of one matrix")

    @jax.jit
    def turned(matrices):
        presets = [PRESETS[call.inputs["ns_coefficients_preset"]] for call in calls]
        return [orthogonalised(x[None], COEFFICIENTS[p], products)[0] for x, p in zip(matrices, presets, strict=True)]

    for y, call in zip(turned([wide(call.inputs["x"]) for call in calls]), calls, strict=True):
        expected = call.outputs[OUTPUTS[products]]
        case.assert_close(y, wide(expected), atol=allowed(case, NOTES[products]))


def wide(x):
    """The matrix, or its transpose, that has no more rows than columns."""
    return x.T if x.shape[0] > x.shape[1] else x


def newton_schulz(x, coefficients):
    """O of one wide matrix, as the equations have it, in float64."""
    x = x / np.linalg.norm(x.astype(np.float64))
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def muon_of(**fields):
    """Muon with the published numbers and a constant rate of 1."""
    section = base.optimizer()
    section.name, section.learning_rate, section.clip_norm = "muon", 1.0, 0.0
    section.update(fields)
    return make_optimizer(section)[0]


@pytest.mark.parametrize("scan", [False, True])
@cases("raev2_dit")
def test_the_matrices_of_our_layout_are_those_of_the_official_file(case, scan):
    model, _, params, architecture, carried = in_context(case)
    official = dit_in_context.write(Model(architecture, params, carried))
    rng = np.random.default_rng(0)
    gradients = {name: rng.normal(size=w.shape).astype(np.float32) for name, w in official.items()} | carried
    told = {name: architecture[name] for name in ("base_depth", "alignment_depth")}
    ours = dit_in_context.read(gradients, **told).params
    structure = ours
    if scan:
        latents = np.zeros((1, architecture["grid_size"] ** 2, architecture["in_channels"]))
        init = model.clone(scan=True).init
        structure = meta.unbox(
            jax.eval_shape(init, jax.random.key(0), latents, np.ones(1), np.zeros(1, np.int32))["params"]
        )
    params, ours = stack_blocks(params, structure), stack_blocks(ours, structure)
    optimizer = muon_of(muon_nesterov=False)
    steps = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(ours, params)
    back = dit_in_context.write(Model(architecture, unstack_blocks(jax.device_get(steps)), carried))
    matrices = {name for name, w in gradients.items() if w.ndim == 2 and name not in carried}
    for name, gradient in gradients.items():
        if name in matrices:
            turned = newton_schulz(wide(gradient), COEFFICIENTS["polar_express"])
            scale = 0.2 * max(gradient.shape) ** 0.5
            np.testing.assert_allclose(wide(-back[name]), scale * turned, atol=2e-4 * scale, err_msg=name)
        elif name not in carried:  # AdamW's first step
            np.testing.assert_allclose(-back[name], np.sign(gradient), atol=1e-3, err_msg=name)
    assert {
        "ctx_embedder.embedding_table.weight",
        "t_embedder.learnable_tokens",
        "final_layer.adaln_modulation.1.weight",
    } < matrices


def test_singular_values_come_near_one():
    x = np.random.default_rng(0).normal(size=(3, 8, 20)).astype(np.float32)
    for coefficients in COEFFICIENTS.values():
        y = np.asarray(jax.jit(orthogonalised, static_argnums=(1, 2))(x, coefficients, "float32"))
        values = np.linalg.svd(y, compute_uv=False)
        assert values.min() > 0.8 and values.max() < 1.2
        u, _, vt = np.linalg.svd(x, full_matrices=False)
        assert np.abs(y - u @ vt).max() < 0.1


DIVIDED = """
import json, math, re, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from configs import base
from rae_jax.training import sharding
from rae_jax.training.optimizer import make_optimizer

section = base.optimizer()
section.name = "muon"
optimizer, _ = make_optimizer(section)
mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})

def step(p):
    return optimizer.update(p, optimizer.init(p), p)[0]

for shape, axes in json.loads(sys.argv[1]):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    params = {"blocks": {"kernel": kernel}}
    alone = jax.jit(step).lower(params).compile()
    with sharding.use(mesh):
        stored = NamedSharding(mesh, PartitionSpec(None, *(tuple(names) for names in axes)))
        divided = jax.jit(step, in_shardings=stored, out_shardings=stored).lower(params).compile()
    given = {alone: params, divided: jax.device_put(params, stored)}
    one, all_of_them = (np.asarray(jax.tree.leaves(compiled(p))[0]) for compiled, p in given.items())
    difference = float(np.abs(one - all_of_them).max())
    moved = re.findall(r"f32\\[([\\d,]+)\\]\\S* (?:all-gather|all-reduce)\\(", divided.as_text())
    largest = max(math.prod(map(int, sizes.split(","))) for sizes in moved) / kernel.size
    print(json.dumps([difference, largest, *(c.cost_analysis()["flops"] for c in (alone, divided))]))
"""


def test_matrices_are_divided_over_all_devices():
    """Many matrices, two a device; the columns of one; of three, each on two devices, which have half of them.

    A unit is a product of squares: of a matrix all take 2 columns / rows + 1. No device collects the matrices whole.
    """
    feed_forward, attention, whole = (["fsdp"], ["tensor"]), (["tensor", "fsdp"], []), ([], [])
    shares = {(16, 64, 96): (64, 2 * 4), (1, 64, 400): (13.5, 400 / 8 / 32 + 1), (3, 64, 192): (21, 192 / 2 / 32 + 1)}
    cases = [(shape, stored) for shape in shares for stored in (feed_forward, attention)]
    cases.append(((16, 65, 96), whole))  # rows that fsdp does not divide
    done = subprocess.run(
        [sys.executable, "-c", DIVIDED, json.dumps(cases)],
        env=runs.environment(8) | {"TF_CPP_MIN_LOG_LEVEL": "0"}, cwd=runs.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "full rematerialization" not in done.stderr, done.stderr
    for (shape, stored), line in zip(cases, done.stdout.splitlines()[-len(cases) :], strict=True):
        difference, largest, alone, divided = json.loads(line)
        units, share = shares.get(shape, shares[16, 64, 96])
        assert difference < 1e-6
        assert largest <= 0.67 or stored == whole  # half of them, of which three are filled up to four
        assert divided / alone == pytest.approx(share / units, rel=0.15)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "moun"}, r"optimizer\.name='moun' is not one of"),
        ({"muon_coefficients": "polar"}, "'polar' are not one of"),
        ({"muon_products": "half"}, "'half' are not one of"),
    ],
)
def test_what_there_is_not_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        muon_of(**fields)


def test_queries_keys_and_values_of_unknown_heads_are_refused():
    params = {"attention": {"qkv": {"kernel": np.ones((12, 4), np.float32)}}}
    optimizer = muon_of()
    with pytest.raises(ValueError, match="cannot tell the heads in attention/qkv/kernel"):
        jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
