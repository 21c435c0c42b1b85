"""End-to-end tuning: the rectified coder learns latents that a generator finds easy to align (REPA-E, for RAC).

Leng et al., "REPA-E: Unlocking VAE for End-to-End Tuning with Latent Diffusion Transformers" (2025). Coder and
generator are trained together. The velocity loss does not reach the coder, whose latents it would make trivial; the
alignment loss does, beside the coder's own. The tuned coder is then frozen, and a generator trained on its latents.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.conditions import condition
from rae_jax.components.encoders import encoder
from rae_jax.components.latent_spaces import coder, teacher
from rae_jax.models import coder as rectified_coder
from rae_jax.objectives.aligned_velocity import model_init, velocity_and_alignment
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key, to_float
from rae_jax.objectives.rectified_coder import coder_loss
from rae_jax.objectives.velocity import training_points


def batch_normalised(z: jax.Array) -> jax.Array:
    """Latents `[B, N, C]` with each channel's mean and variance in the batch removed (REPA-E's batch norm)."""
    mean, variance = jnp.mean(z, axis=(0, 1)), jnp.var(z, axis=(0, 1))
    return (z - mean) * jax.lax.rsqrt(variance + 1e-5)


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`, which starts from the component "coder" and leaves the tuned coder."""
    section, told, model = config[stage], condition(config), coder(config)
    losses, of_coder, draw = velocity_and_alignment(config), coder_loss(config), training_points(config, "flow")
    generator_init, num_steps = model_init(config), config.coder.num_steps
    weights = {"flow": config.flow.alignment_weight, "coder": section.alignment_weight}

    def init(key: jax.Array) -> Params:
        return generator_init(key) | {"coder": model.init(key)}

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        point_key, coder_key = jax.random.split(key)
        images = to_float(batch)
        generator = {name: params[name] for name in ("flow", "alignment")}
        with model.precise():
            z = batch_normalised(rectified_coder.encode(model.module, params["coder"], images, num_steps))

        def of_latents(generator: Params, z: jax.Array) -> tuple[jax.Array, jax.Array]:
            return losses(generator, frozen["encoder"], images, draw(z, told.of_batch(batch), point_key))

        velocity, alignment = of_latents(generator, jax.lax.stop_gradient(z))
        _, of_z = of_latents(jax.lax.stop_gradient(generator), z)
        of_images, terms = of_coder(params["coder"], frozen["teacher"], images, coder_key)
        total = velocity + weights["flow"] * alignment + weights["coder"] * of_z + of_images
        return total, terms | {"velocity": velocity, "alignment": alignment}

    return single_network(
        model_init=init,
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen={"teacher": teacher(config), "encoder": encoder(config)},
        initial={"coder": model},
        begin=lambda params, initial: params | {"coder": initial["coder"]},
        within="coder",
    )
