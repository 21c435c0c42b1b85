"""Alignment and end-to-end tuning (REPA, REPA-E): losses and gradients beside the same written out, part by part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from losses import assert_same_gradients, images_of, loss_of
from random_params import random_params

from configs import architectures, digits_rac
from rae_jax.models.alignment import AlignmentProjector, with_tokens_after
from rae_jax.models.coder import RectifiedCoder, fold
from rae_jax.models.kl_vae import KLVAE
from rae_jax.models.lightning_dit import LightningDiT
from rae_jax.models.vit import VisionTransformer
from rae_jax.objectives import aligned_velocity, end_to_end_tuning

BATCH, KEY = images_of(2, 8), jax.random.key(7)
IMAGES = BATCH["image"] / np.float32(255)
SMALL = {"blocks_per_level": 0, "num_groups": 2, "middle_attention": False}
TOKENS, CHANNELS = 16, 3  # of a latent: 4 x 4


@functools.cache
def prepared():
    """A config of 8 x 8 pixels whose encoder, latents and generator all have 4 x 4 tokens; models and parameters."""
    config = digits_rac.get_config("tiny")
    config.data.image_size = config.encoder.input_size = 8
    config.encoder.model = architectures.vision_transformer(image_size=8, patch_size=2, width=6, depth=1, num_heads=2)
    config.teacher.model = architectures.kl_vae(channels=(4, 4), latent_channels=CHANNELS, **SMALL)
    config.coder.model = architectures.rectified_coder(channels=(4,), patch_size=4, **SMALL)
    config.coder.num_steps, config.coder.noise, config.coder.encodes = 1, 0.0, False
    for name in ("path", "latent", "pixel", "round_trip", "mean_velocity"):  # which leaves the reconstruction
        config.coder[f"{name}_weight"] = 0.0
    config.flow.model = architectures.lightning_dit(width=8, depth=2, num_heads=2, rope=False)
    config.flow.objective, config.flow.label_dropout = "aligned_velocity", 0.0
    config.flow.alignment_depth, config.flow.alignment_width, config.flow.alignment_weight = 1, 8, 0.7
    config.flow.shift_base = TOKENS * CHANNELS  # no shift
    config.tuned_coder.alignment_weight = 3.0
    models = {
        "encoder": VisionTransformer(**config.encoder.model.to_dict()),
        "teacher": KLVAE(**config.teacher.model.to_dict()),
        "coder": RectifiedCoder(latent_channels=CHANNELS, scale=2, **config.coder.model.to_dict()),
        "flow": LightningDiT(grid_size=4, in_channels=CHANNELS, num_classes=10, **config.flow.model.to_dict()),
        "alignment": AlignmentProjector(6, 8),
    }
    z, times = np.zeros((2, TOKENS, CHANNELS), np.float32), np.zeros(2, np.float32)
    arguments = {
        "encoder": (IMAGES,), "teacher": (IMAGES,), "coder": (np.zeros((2, 8, 8, 4), np.float32), times),
        "flow": (z, times, BATCH["label"]), "alignment": (np.zeros((2, TOKENS, 8), np.float32),),
    }  # fmt: skip
    params = {name: random_params(model, *arguments[name], std=0.3) for name, model in models.items()}
    return config, models, params


def teachers_latents():
    _, models, params = prepared()
    encode = jax.jit(lambda p: models["teacher"].apply({"params": p}, IMAGES, method="encode").mean)
    return np.asarray(encode(params["teacher"])).reshape(2, TOKENS, CHANNELS)


def velocity_and_alignment(generator, z, key):
    """Both losses of flow and projector on the normalised latents `z`, with the noise that `key` gives."""
    config, models, params = prepared()
    pixels = (IMAGES - np.float32(config.encoder.image_mean)) / np.float32(config.encoder.image_std)
    tokens = models["encoder"].apply({"params": params["encoder"]}, pixels)
    time_key, noise_key, _ = jax.random.split(key, 3)
    t, eps = 0.999 * jax.random.uniform(time_key, (2,)), jax.random.normal(noise_key, z.shape)
    z_t = (1 - t)[:, None, None] * z + t[:, None, None] * eps
    v, halfway = with_tokens_after(models["flow"], generator["flow"], 1, z_t, t, BATCH["label"])
    projected = models["alignment"].apply({"params": generator["alignment"]}, halfway)
    lengths = jnp.linalg.norm(projected, axis=-1) * jnp.linalg.norm(tokens, axis=-1)
    cosines = jnp.sum(projected * tokens, axis=-1) / lengths
    return jnp.mean((v - (eps - z)) ** 2), jnp.mean(1 - cosines)


def test_the_generators_loss_is_velocity_plus_weighted_alignment_on_the_latents_as_they_are(monkeypatch):
    config, _, params = prepared()
    config = config.copy_and_resolve_references()
    generator = {name: params[name] for name in ("flow", "alignment")}
    mean, variance = np.full((TOKENS, CHANNELS), 0.2, np.float32), np.full((TOKENS, CHANNELS), 3.0, np.float32)
    frozen = {"teacher": params["teacher"], "encoder": params["encoder"], "coder": params["coder"]}
    frozen["stats"] = {"mean": mean, "variance": variance}
    loss, metrics = loss_of(aligned_velocity, config, "flow", monkeypatch)(generator, frozen, BATCH, KEY)
    z = (teachers_latents() - mean) / np.sqrt(variance + 1e-5)
    velocity, alignment = jax.jit(velocity_and_alignment)(generator, z, KEY)
    np.testing.assert_allclose(metrics["velocity"], velocity, rtol=1e-4)
    np.testing.assert_allclose(metrics["alignment"], alignment, rtol=1e-4)
    np.testing.assert_allclose(loss, velocity + 0.7 * alignment, rtol=1e-4)


def test_the_velocity_loss_does_not_reach_the_coder_and_the_coders_alignment_does_not_reach_the_generator(monkeypatch):
    config, models, params = prepared()
    trained = {name: params[name] for name in ("flow", "alignment", "coder")}
    frozen = {name: params[name] for name in ("teacher", "encoder")}
    loss = loss_of(end_to_end_tuning, config, "tuned_coder", monkeypatch)
    (value, _), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained, frozen, BATCH, KEY)

    point_key = jax.random.split(KEY)[0]
    last = np.pad(2 * IMAGES - 1, ((0, 0),) * 3 + ((0, 1),), constant_values=0.5)
    first = teachers_latents().reshape(2, 4, 4, CHANNELS).repeat(2, axis=1).repeat(2, axis=2)
    first = np.pad(first, ((0, 0),) * 3 + ((0, 1),), constant_values=0.5)

    def field(coder, state):
        return models["coder"].apply({"params": coder}, state, np.zeros(2, np.float32), method="velocity")

    def latents(coder):
        encoded = last - field(coder, last)
        z = fold(encoded, 2) @ coder["projector"]["kernel"] + coder["projector"].get("bias", 0)
        z = z.reshape(2, TOKENS, CHANNELS)
        return (z - z.mean((0, 1))) / jnp.sqrt(z.var((0, 1)) + 1e-5)

    def of_generator(generator, z):
        velocity, alignment = velocity_and_alignment(generator, z, point_key)
        return velocity + 0.7 * alignment

    def of_coder(coder, generator):
        reconstruction = jnp.mean((first + field(coder, first) - last) ** 2)
        return 3.0 * velocity_and_alignment(generator, latents(coder), point_key)[1] + reconstruction

    generator = {name: params[name] for name in ("flow", "alignment")}
    parts = [
        jax.jit(jax.value_and_grad(of_generator))(generator, jax.jit(latents)(params["coder"])),
        jax.jit(jax.value_and_grad(of_coder))(params["coder"], generator),
    ]
    np.testing.assert_allclose(value, parts[0][0] + parts[1][0], rtol=1e-4)
    assert_same_gradients({name: gradients[name] for name in generator}, parts[0][1])
    assert_same_gradients(gradients["coder"], parts[1][1])
