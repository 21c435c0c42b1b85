"""Rectified coder: one velocity field that decodes a frozen teacher's latents in steps, and reversed encodes (RAC).

Fang et al., "RAC: Rectified Flow Auto Coder" (2026), Section 3. Every squared norm is a mean over elements, of
states in the scale of [-1, 1].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.latent_spaces import coder, teacher
from rae_jax.flow.both_ways import decode, encode, mean_velocity_loss, path_loss, random_grid, uniform_grid
from rae_jax.models import coder as rectified_coder
from rae_jax.models.coder import velocity_function
from rae_jax.models.kl_vae import to_map
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key, to_float
from rae_jax.training.state import TrainState

ROUND_TRIPS = ("latent", "state")


def mean_square(x: jax.Array) -> jax.Array:
    """A scalar."""
    return jnp.mean(jnp.square(x))


def coder_loss(
    config: ConfigDict, stage: str = "coder"
) -> Callable[[Params, Params, jax.Array, jax.Array], tuple[jax.Array, Metrics]]:
    """`(coder's parameters, teacher's, images [B, H, W, 3], key) -> (scalar, its terms)`, weighted as `stage` says.

    Decoding the teacher's latent gives the terms `reconstruction` (its weight is 1), `path` (Eq. 9) and `mean_velocity`
    (Eq. 11); encoding the image gives `latent`, against the teacher's, and `pixel`, what the teacher decodes from it;
    and decoding what has been encoded gives `round_trip` (Eq. 10). Terms of weight 0 are not computed. With
    `round_trip="state"` what is decoded again is the encoded state itself rather than its latent enlarged: the coder as
    an autoencoder without a bottleneck, as in the paper's Fig. 6 and Table 3.

    Raises:
      ValueError: unknown `round_trip`.
    """
    section, part, frozen_teacher = config[stage], coder(config), teacher(config)
    model = part.module
    if section.round_trip not in ROUND_TRIPS:
        raise ValueError(f"round_trip={section.round_trip!r} is not one of {ROUND_TRIPS}")
    weights = {
        "reconstruction": 1.0,
        "path": section.path_weight,
        "latent": section.latent_weight,
        "pixel": section.pixel_weight,
        "round_trip": section.round_trip_weight,
        "mean_velocity": section.mean_velocity_weight,
    }
    num_steps, random_times, noise = section.num_steps, section.random_times, section.noise
    recompute, whole_state = section.recompute, section.round_trip == "state"

    def loss(params: Params, frozen: Params, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Metrics]:
        with part.precise():
            return precise_loss(params, frozen, images, key)

    def precise_loss(params: Params, frozen: Params, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Metrics]:
        z = to_map(frozen_teacher.apply(frozen, images, method="encode").mode())
        first, last = model.latent_state(z), model.image_state(images)
        velocity = velocity_function(model, params)
        if recompute:
            velocity = jax.checkpoint(velocity)
        time_key, *noise_keys = jax.random.split(key, 4)
        times = random_grid(time_key, num_steps) if random_times else uniform_grid(num_steps)
        down, up, again = (noise * jax.random.normal(noise_key, (num_steps, *last.shape)) for noise_key in noise_keys)

        states = decode(velocity, first, times, noise=down, trajectory=True)
        terms = {"reconstruction": mean_square(states[-1] - last), "path": path_loss(states, last, times)}
        if weights["mean_velocity"]:
            terms["mean_velocity"] = mean_velocity_loss(velocity, states[:-1], times[:-1], first, last)
        if weights["latent"] or weights["pixel"] or weights["round_trip"]:
            encoded = encode(velocity, last, times, noise=up)
            latent = part.apply(params, encoded, method="project")
            terms["latent"] = mean_square(latent - jax.lax.stop_gradient(z))
            if weights["pixel"]:
                decoded = frozen_teacher.apply(frozen, latent, method="decode")
                terms["pixel"] = mean_square(2 * (decoded - images))
            if weights["round_trip"]:
                start = encoded if whole_state else model.latent_state(latent)
                terms["round_trip"] = mean_square(decode(velocity, start, times, noise=again) - last)
        return sum(weights[name] * value for name, value in terms.items()), terms

    return loss


def coder_pictures(config: ConfigDict) -> Callable[[Params, Params, jax.Array], dict[str, jax.Array]]:
    """`(coder's parameters, teacher's, images [B, H, W, 3]) -> versions of the images, by name`."""
    part, autoencoder, num_steps = coder(config), teacher(config), config.sampling.coder_steps

    def pictures(params: Params, of_teacher: Params, images: jax.Array) -> dict[str, jax.Array]:
        z = autoencoder.apply(of_teacher, images, method="encode").mode()
        with part.precise():
            own = rectified_coder.encode(part.module, params, images, num_steps)
            return {
                "original": images,
                "teacher": autoencoder.apply(of_teacher, z, method="decode"),
                "coder": rectified_coder.decode(part.module, params, z, num_steps),
                "round trip": rectified_coder.decode(part.module, params, own, num_steps),
            }

    return pictures


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`: `coder_loss`."""
    trained, of_images, drawn = coder(config), coder_loss(config, stage), coder_pictures(config)

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return of_images(params, frozen["teacher"], to_float(batch), key)

    def pictures(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        return drawn(state.ema_params, state.frozen["teacher"], to_float(batch))

    return single_network(
        model_init=trained.init,
        loss=loss,
        train=config[stage].train,
        key=stage_key(config.seed, stage),
        frozen={"teacher": teacher(config)},
        pictures=pictures,
    )
