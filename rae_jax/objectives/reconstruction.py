"""Reconstruction: trains the pixel decoder on frozen latents (RAE, Section 3; RPiAE's specialisation).

The latents are made noisy while the decoder trains, so that it forgives the errors of generated ones
(noise-augmented decoding, RAE Section 4.3). What reconstructs and the discriminator, two networks with two optimizers,
are updated in one step, which is therefore written out here; `objectives/pivot.py` has it too.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params
from rae_jax.components.decoders import decoder, last_kernel
from rae_jax.components.encoders import tokens_of
from rae_jax.components.latent_spaces import latent_space
from rae_jax.models.autoencoder import noise_augmentation
from rae_jax.objectives.image_loss import ImageLoss
from rae_jax.objectives.objective import Batch, Metrics, Objective, accumulate, stage_key, to_float
from rae_jax.objectives.quality import reconstruction_evaluation
from rae_jax.training.optimizer import make_optimizer
from rae_jax.training.state import TrainState, ema_decays


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`.

    Raises:
      ValueError: the section's `loss` asks for what cannot be.
    """
    section, trained = config[stage], decoder(config)
    space = latent_space(config, section.autoencoder)
    image_loss = ImageLoss(config, section.loss)
    tau, distribution, stretch = section.noise_tau, section.noise_distribution, section.coordinate_stretch
    to_tokens, depth = tokens_of(config), config.encoder.model.get("depth", 0)
    if stretch != 1 and (
        stretch < 1 or section.autoencoder != "rae" or config.encoder.model.get("positions") != "rotary"
    ):
        raise ValueError(
            f"{stage}.coordinate_stretch={stretch}: it is a factor of at least 1, and above it for the tokens of an "
            "encoder with positions='rotary'"
        )

    def stretched(frozen: dict[str, Params], images: jax.Array, key: jax.Array) -> jax.Array:
        scales = jnp.exp(jax.random.uniform(key, (depth,), minval=-1.0) * math.log(stretch))
        return to_tokens(frozen["encoder"], images, coordinate_scales=scales)

    def decode(params: Params, frozen: dict[str, Params], latents: jax.Array) -> jax.Array:
        return space.decode({**frozen, "decoder": params}, latents)

    def gradients(state: TrainState, latents: jax.Array, images: jax.Array, key: jax.Array) -> Any:
        noise_key, loss_key = jax.random.split(key)
        noisy = noise_augmentation(noise_key, latents, tau, distribution)
        decoded, pull_back = jax.vjp(lambda params: decode(params, state.frozen, noisy), state.params)
        by_pixel, _, metrics = image_loss.gradient(
            state, images, decoded, loss_key, lambda pixels: last_kernel(trained, pull_back(pixels)[0])
        )
        return pull_back(by_pixel)[0], metrics, decoded

    return reconstructing(
        config,
        stage,
        image_loss,
        model_init=trained.init,
        prepare=lambda frozen, images: space.encode(frozen, images),
        prepare_to_train=stretched if stretch != 1 else None,
        gradients=gradients,
        reconstruct=lambda params, frozen, latents, images: decode(params, frozen, latents),
        frozen={name: part for name, part in {**space.encoding, **space.decoding}.items() if name != "decoder"},
        initial={"decoder": trained} if section.initial else {},
        begin=lambda params, initial: initial["decoder"],
    )


def reconstructing(
    config: ConfigDict,
    stage: str,
    image_loss: ImageLoss,
    *,
    model_init: Callable[[jax.Array], Params],
    prepare: Callable[[dict[str, Params], jax.Array], Any],
    gradients: Callable[[TrainState, Any, jax.Array, jax.Array], tuple[Params, Metrics, jax.Array]],
    reconstruct: Callable[[Params, dict[str, Params], Any, jax.Array], jax.Array],
    frozen: dict[str, Component],
    prepare_to_train: Callable[[dict[str, Params], jax.Array, jax.Array], Any] | None = None,
    **hooks: Any,
) -> Objective:
    """An objective that reconstructs images, against a discriminator if `image_loss` has one.

    Args:
      config, stage: the section's `train` and the discriminator's optimizer are read.
      image_loss: of the section's `loss`; the networks that it needs are added to `frozen`.
      model_init: `key -> boxed parameters`.
      prepare: `(frozen, images) -> what the frozen networks make of the batch`, arrays with a row for each image.
      gradients: `(state, prepared, images, key) -> (gradients, metrics, reconstructed images)`.
      reconstruct: `(params, frozen, prepared, images) -> images`, without noise.
      prepare_to_train: `(frozen, images, key) -> what they make of it` in its place, for the gradients alone.
      hooks: the other fields of `Objective`.

    Raises:
      ValueError: the discriminator's fakes cannot be kept.
    """
    train, key = config[stage].train, stage_key(config.seed, stage)
    optimizer, learning_rate = make_optimizer(train.optimizer)
    pieces, decays = train.gradient_accumulation, ema_decays(train)
    if image_loss.noisy_fakes and pieces > 1:
        raise ValueError(
            "loss.discriminator_fakes='noisy' keeps the images of the whole batch, which train.gradient_accumulation="
            f"{pieces} does not; set it to 1, or the fakes to 'clean'"
        )

    def init(init_key: jax.Array, batch: Batch) -> TrainState:
        del batch  # the architecture fixes every shape
        model_key, discriminator_key = jax.random.split(init_key)
        params = model_init(model_key)
        state = TrainState.create(params, optimizer.init(params), decays)
        return state.replace(discriminator=image_loss.init_discriminator(discriminator_key))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        model_key, discriminator_key = jax.random.split(jax.random.fold_in(key, state.step))
        images = to_float(batch)
        if prepare_to_train is None:
            prepared = plain = prepare(state.frozen, images)
        else:
            prepared = prepare_to_train(state.frozen, images, jax.random.fold_in(model_key, 1))
            plain = prepare(state.frozen, images)

        def of_part(part: Batch, part_key: jax.Array) -> tuple[Params, Metrics, jax.Array | None]:
            by_params, metrics, images = gradients(state, part["prepared"], part["images"], part_key)
            return by_params, metrics, images if image_loss.noisy_fakes else None

        by_params, metrics, noisy_fakes = accumulate(
            of_part, {"prepared": prepared, "images": images}, model_key, pieces
        )
        updates, opt_state = optimizer.update(by_params, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"gradient_norm": optax.tree.norm(by_params), "learning_rate": learning_rate(state.step)}
        discriminator = None
        if image_loss.adversarial:
            discriminator, more = image_loss.train_discriminator(
                state,
                images,
                lambda: noisy_fakes if image_loss.noisy_fakes else reconstruct(params, state.frozen, plain, images),
                discriminator_key,
            )
            metrics |= more
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, discriminator=discriminator)
        return state.averaged(decays), metrics

    def averaged(state: TrainState, images: jax.Array) -> jax.Array:
        return reconstruct(state.ema_params, state.frozen, prepare(state.frozen, images), images)

    def pictures(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        images = to_float(batch)
        return {"original": images, "reconstruction": averaged(state, images)}

    return Objective(
        init=init,
        train_step=train_step,
        frozen={**frozen, **image_loss.frozen},
        pictures=pictures,
        evaluation=reconstruction_evaluation(config, stage, averaged),
        **hooks,
    )
