"""The losses of packs and their gradients against Bagel's training script."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases
from golden_mixtures import mixture, official_pack, patches_of

from configs import digits_edit
from rae_jax.data.packing import NO_LABEL
from rae_jax.data.scenes import SceneSource
from rae_jax.experiment.pack_source import pack_batches
from rae_jax.flow.path import interpolate, velocity_target
from rae_jax.flow.times import shift_times
from rae_jax.interop import kinds
from rae_jax.interop.model import Model
from rae_jax.models.language_model import cross_entropy
from rae_jax.objectives import mixture_of_transformers
from rae_jax.objectives.mixture_of_transformers import shares, velocity_loss
from rae_jax.training.sharding import unbox


@cases("bagel_edit", "bagel_t2i_loss")
def test_losses_and_gradients_are_the_official_ones(case):
    model, params, read = mixture(case)
    call = case.call(r"Bagel\.forward.*")
    inputs = call.inputs
    patch = case.constructor["latent_patch_size"]
    z = patches_of(inputs["padded_latent"], inputs["patchified_vae_latent_shapes"], patch)

    @jax.jit
    def line(z, noise, times):
        t = shift_times(jax.nn.sigmoid(times), case.constructor["timestep_shift"])
        return interpolate(z, noise, t), t, velocity_target(z, noise)

    z_t, t, v = jax.device_get(line(z, inputs["noise"], inputs["packed_timesteps"]))
    pack = official_pack(case, inputs, z_t, t)
    target = v[pack.noised_at][None]
    counted = shares(np.ones(target.shape[:2], np.float32))
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
        each = cross_entropy(logits, labels)
        found["ce_each"], found["ce"] = each, jnp.sum(each * shares(jnp.float32(labels != NO_LABEL)))
        found["ce_reweighted"] = jnp.sum(each * shares(weights))
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


def test_what_does_not_count_adds_nothing():
    zeros = jnp.zeros((1, 2, 3))
    assert velocity_loss(zeros + 1, zeros, shares(jnp.zeros((1, 2)))) == 0
    assert jnp.sum(cross_entropy(zeros, jnp.full((1, 2), NO_LABEL)) * shares(jnp.zeros((1, 2)))) == 0
    assert velocity_loss(zeros.at[0, 1].set(5.0) + 1, zeros, shares(jnp.array([[1.0, 0.0]]))) == 1


@pytest.mark.slow
def test_next_tokens_are_learnt_beside_velocities_and_parts_of_a_batch_count_as_the_whole():
    config = digits_edit.get_config("tiny")
    config.mixture.question_share, config.mixture.text_weight, config.mixture.model.language_head = 0.5, 0.25, "own"
    config.mixture.train.batch_size, config.mixture.train.optimizer.warmup_steps = 4, 0
    batch = next(pack_batches(config, "mixture", SceneSource("train")))
    assert (batch["text_labels"] != NO_LABEL).any() and batch["text_labels"].shape == batch["text_ids"].shape
    at = np.argwhere(batch["text_labels"] != NO_LABEL)
    following = batch["text_ids"][at[:, 0], at[:, 1] + 1]
    np.testing.assert_array_equal(batch["text_labels"][at[:, 0], at[:, 1]], following)
    found = []
    for parts in (1, 2):
        config.mixture.train.gradient_accumulation = parts
        objective = mixture_of_transformers.make(config, "mixture")
        frozen = {name: unbox(part.init(jax.random.key(3))) for name, part in objective.frozen.items()}
        state = unbox(objective.init(jax.random.key(0), batch)).replace(frozen=frozen)
        _, metrics = jax.jit(objective.train_step)(state, batch)
        total = metrics["velocity_loss"] + 0.25 * metrics["text_loss"]
        np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
        found.append(metrics)
    np.testing.assert_allclose(found[0]["text_loss"], found[1]["text_loss"], rtol=1e-4)  # noise is drawn by part
    config.mixture.model.language_head = ""
    with pytest.raises(ValueError, match="nothing scores texts"):
        mixture_of_transformers.make(config, "mixture")
