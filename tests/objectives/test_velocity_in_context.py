"""RAEv2's loss and its gradients, and its guided samples, against the reference's."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, tokens
from golden_modules import in_context
from jax.scipy.special import ndtr

from rae_jax.components.generators import VelocityNetwork
from rae_jax.flow.guidance import classifier_free_guidance, internal_guidance
from rae_jax.flow.path import interpolate
from rae_jax.flow.prediction import held_velocity_target
from rae_jax.flow.times import dimension_shift, logit_normal_times, sampling_times, shift_times
from rae_jax.interop.dit_in_context import write
from rae_jax.interop.model import Model
from rae_jax.objectives.velocity import TrainingPoint, velocity_loss


def network_of(case, prediction, t_eps):
    """The case's generator as a component, and its parameters."""
    model, _, params, _, _ = in_context(case)
    described = dict(kind="", weights="", described_by="", prediction=prediction, t_eps=t_eps)
    return VelocityNetwork("flow", model, lambda key: params, "float32", **described), params


def shift_of(call):
    return dimension_shift(call.inputs["time_dist_shift_dim"], call.inputs["time_dist_shift_base"])


def conditions(case, call):
    """What a call asks for, and the null of as many rows."""
    if case.constructor["condition_type"] == "label":
        labels = call.inputs["context" if "context" in call.inputs else "y"]
        return labels, np.full_like(labels, case.constructor["num_classes"])
    features, mask = call.inputs["context"], call.inputs["attn_mask"]
    (empty,) = np.flatnonzero(~mask.any(axis=1))
    null = {"features": np.broadcast_to(features[empty], features.shape), "mask": np.zeros_like(mask)}
    return {"features": features, "mask": mask}, null


def point_of(case, call):
    """The training point of an official call's draws."""
    normal, uniform = call.inputs["normal"], call.inputs["uniform"]
    distribution, mean, std = call.inputs.get("time_dist_type", "logit-normal_0_1").split("_")
    assert distribution == "logit-normal"
    times = logit_normal_times(ndtr(normal), float(mean), float(std), largest=1.0)
    t = shift_times(times, shift_of(call))
    z, eps = tokens(call.inputs["x1"]), tokens(call.inputs["noise"])
    dropped = uniform < call.inputs["cfg_dropout_prob"]
    asked, null = conditions(case, call)
    asked = jax.tree.map(lambda c, n: np.where(dropped.reshape(-1, *(1,) * (c.ndim - 1)), n, c), asked, null)
    return TrainingPoint(interpolate(z, eps, t), t, asked, held_velocity_target(z, eps, t, call.inputs["t_eps"]))


@functools.cache
def compiled(case, prediction, t_eps):
    """`(parameters, training point, tokens, weights) -> (((loss, metrics), gradient), outputs)`."""
    network, _ = network_of(case, prediction, t_eps)

    def losses(params, point, aligned, weights):
        loss = jax.value_and_grad(velocity_loss(network, **weights), has_aux=True)
        return loss(params, point, aligned), network.outputs(params, point.z_t, point.t, point.condition)

    return jax.jit(losses)


@cases("raev2_loss", "raev2_t2i")
def test_the_loss_and_its_gradients_are_the_references(case):
    for call in case.calls("training_losses.*"):
        _, _, params, architecture, carried = in_context(case)
        aligned = call.inputs.get("z_clean")
        weights = dict(
            base_coefficient=call.inputs["base_model_coeff"], alignment_weight=call.inputs.get("repa_coeff", 0.0)
        )
        features = case.constructor["z_dim"] if case.constructor["enable_repa"] else 0
        if aligned is None and features:
            aligned = np.zeros((*tokens(call.inputs["x1"]).shape[:2], features), np.float32)
        point = point_of(case, call)
        run = compiled(case, call.inputs["prediction"], call.inputs["t_eps"])
        ((total, metrics), gradient), out = run(params, point, aligned, weights)

        def close(actual, expected):
            case.assert_close(actual, expected, atol=case.description["tolerance"]["rtol"] * np.abs(expected).max())

        v, base = (jnp.square(x - point.target) for x in (out.full, out.base))
        actual = {
            "t": point.t,
            "x_t": point.z_t,
            "labels after dropout": point.condition,
            "loss per element, both heads": v + weights["base_coefficient"] * base,
            "loss_base per element": base,
            "mean of loss_base": metrics["base"],
            "loss that is differentiated": total,
            "mean loss": total,
            "loss_repa, coefficient included": weights["alignment_weight"] * metrics.get("alignment", 0.0),
        }
        if isinstance(point.condition, dict):
            actual["mask after dropout"] = point.condition["mask"]
        if call.inputs["prediction"] == "velocity":
            actual |= {"full": out.full, "base": out.base}
        seen = set()
        for name, expected in call.outputs.items():
            if name in actual:
                seen.add(name)
                expected = tokens(expected) if expected.ndim == 4 else expected
                close(np.reshape(actual[name], expected.shape), expected)
        assert {"t"} < seen and seen & {"mean loss", "loss that is differentiated"}
        official = write(Model(architecture, jax.device_get(gradient), carried))  # a layout is linear
        gradients = call.gradients("that loss") | call.gradients("the mean loss")
        assert gradients
        for name, expected in gradients.items():
            case.assert_gradient_close(official[name], expected)


def scales_of(call):
    """Scale and interval of classifier-free guidance, scales and interval of internal guidance; 1 where inactive."""
    cfg, own = (call.inputs.get(f"guidance.{kind}") or {"scale": 1.0, "t_min": 0.0, "t_max": 1.0}
                for kind in ("cfg", "ig"))  # fmt: skip
    null = own.get("unconditional_scale")
    active = own["scale"] > 1 or null not in (None, 1)
    scales = (own["scale"], own["scale"] if null is None else null) if active else (1.0, 1.0)
    return max(cfg["scale"], 1.0), (cfg["t_min"], cfg["t_max"]), scales, (own["t_min"], own["t_max"])


@cases("raev2_sampling", "raev2_t2i")
def test_guided_samples_and_the_states_on_the_way_are_the_references(case):
    compiled = {}
    for call in case.calls("sample_ode.*"):
        key = call.inputs["prediction"], call.inputs["t_eps"]
        network, params = network_of(case, *key)
        outputs = compiled.setdefault(key, jax.jit(lambda *point, network=network: network.outputs(*point)[:2]))
        z = tokens(call.inputs["x"])
        asked, null = jax.tree.map(lambda c, z=z: c[: len(z)], conditions(case, call))
        scale, interval, own_scales, own_interval = scales_of(call)
        told, told_null = ((c, np.full(len(z), s)) for c, s in zip((asked, null), own_scales, strict=True))
        conditional = internal_guidance(functools.partial(outputs, params), interval=own_interval)
        guided = functools.partial(lambda velocity, told, z, t: velocity(z, t, told), conditional, told)
        if scale > 1:
            guided = classifier_free_guidance(conditional, told, told_null, scale=scale, interval=interval)
        times = sampling_times(call.inputs["num_steps"], shift=shift_of(call))
        states = [z]
        for t, t_next in itertools.pairwise(times):
            states.append(states[-1] - (t - t_next) * guided(states[-1], jnp.full(len(z), t)))
        case.assert_close(states[-1], tokens(call.outputs["sample"]))
        if "state before every network call" in call.outputs:
            case.assert_close(times, call.outputs["time grid, num_steps + 1 points"])
            case.assert_close(np.stack(states[:-1]), tokens(call.outputs["state before every network call"]))
    for call in case.calls("time grid of sample_ode"):
        times = sampling_times(call.inputs["num_steps"], shift=shift_of(call))
        case.assert_close(times, call.outputs["time grid"])


def test_internal_guidance_takes_one_pass_and_rows_have_scales_of_their_own():
    passes = []

    def outputs(z, t, condition):
        passes.append(condition.shape)
        return z * 3.0, z

    guided = classifier_free_guidance(
        internal_guidance(outputs, interval=(0.2, 1.0)),
        (jnp.arange(2), jnp.full(2, 2.0)),
        (jnp.zeros(2, jnp.int32), jnp.full(2, 1.0)),
        scale=1.5,
    )
    v = guided(jnp.ones((2, 3)), jnp.array([0.1, 0.2]))
    # Outside: 3 and 3. Inside: conditional 1 + 2 * 2 = 5, unconditional 3, and 3 + 1.5 * 2 = 6.
    np.testing.assert_allclose(v, [[3.0] * 3, [6.0] * 3])
    assert passes == [(4,)]
    with pytest.raises(ValueError, match="is empty"):
        internal_guidance(outputs, interval=(0.7, 0.2))(jnp.ones((1, 3)), jnp.ones(1), (jnp.ones(1), jnp.ones(1)))
