"""The losses of packs and their gradients against Bagel's training script."""

import jax
import jax.numpy as jnp
import numpy as np
from golden import cases
from golden_mixtures import mixture, official_pack, patches_of

from rae_jax.data.packing import NO_LABEL
from rae_jax.flow.path import interpolate, velocity_target
from rae_jax.flow.times import shift_times
from rae_jax.interop import kinds
from rae_jax.interop.model import Model
from rae_jax.objectives.mixture_of_transformers import text_loss, text_losses, velocity_loss


@cases("bagel_edit", "bagel_t2i_loss")
def test_losses_and_gradients_are_the_official_ones(case):
    model, params, read = mixture(case)
    call = case.call(r"Bagel\.forward.*")
    inputs = call.inputs
    patch = case.constructor["latent_patch_size"]
    z = patches_of(inputs["padded_latent"], inputs["patchified_vae_latent_shapes"], patch)
    t = shift_times(jax.nn.sigmoid(inputs["packed_timesteps"]), case.constructor["timestep_shift"])
    pack = official_pack(case, inputs, interpolate(z, inputs["noise"], t), t)
    target = velocity_target(z, inputs["noise"])[pack.noised_at][None]
    counted = np.ones(target.shape[:2], bool)
    labels = np.full(pack.texts.ids.shape, NO_LABEL)
    weights = np.zeros(labels.shape, np.float32)
    told = [c.inputs for c in case.calls("loss as in the training script")]
    where = np.searchsorted(inputs["packed_text_indexes"], inputs.get("ce_loss_indexes", []))
    if len(where):
        labels[0, where] = inputs["packed_label_ids"]
        weights[0, where] = told[0]["ce_loss_weights"]

    def loss(params):
        velocity, states = model.apply({"params": params}, *pack[:4])
        found = {"mse": velocity_loss(velocity, target, counted)}
        if not len(where):
            return (told[0]["mse_weight"] if told else 1.0) * found["mse"], found
        logits = model.apply({"params": params}, states, method="logits")
        found["ce"], found["ce_each"] = text_loss(logits, labels), text_losses(logits, labels)
        found["ce_reweighted"] = text_loss(logits, labels, weights)
        return told[0]["mse_weight"] * found["mse"] + told[0]["ce_weight"] * found["ce"], found

    if not told:
        case.assert_close(jax.jit(loss)(params)[0], call.outputs["loss"])
        return
    (value, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    outputs = case.call("loss as in the training script").outputs
    ours = {
        "loss": value,
        "mse": found["mse"],
    }
    if len(where):
        ours |= {"ce": found["ce"], "ce with ce_loss_reweighting": found["ce_reweighted"]}
        case.assert_close(found["ce_each"][0, where], call.outputs["ce"])
    official = kinds.find("bagel").write(Model(read.architecture, gradients, read.carried))
    gradient = case.call("loss as in the training script").gradients("loss")
    for name, expected in outputs.items():
        if name in ours:
            case.assert_close(ours[name], expected)
        else:
            assert name.removeprefix("grad of loss wrt ") in gradient, name
    for name, expected in gradient.items():
        case.assert_gradient_close(official[name], expected, rtol=1e-3)


def test_nothing_to_learn_is_no_loss():
    zeros = jnp.zeros((1, 2, 3))
    assert velocity_loss(zeros + 1, zeros, jnp.zeros((1, 2), bool)) == 0
    assert text_loss(zeros, jnp.full((1, 2), NO_LABEL)) == 0
    half = velocity_loss(zeros.at[0, 1].set(5.0) + 1, zeros, jnp.array([[True, False]]))
    assert half == 1  # what is not counted does not count
