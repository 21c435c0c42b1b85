"""Reconstruction: trains the pixel decoder on the frozen encoder's latents (RAE, Section 3).

The latents are made noisy while the decoder trains, so that it forgives the errors of generated ones
(noise-augmented decoding, RAE Section 4.3). Decoder and discriminator, two networks with two optimizers, are updated in
one step, which is therefore written out here.
"""

import jax
import optax
from ml_collections import ConfigDict

from rae_jax.models.autoencoder import noise_augmentation
from rae_jax.objectives.image_loss import ImageLoss
from rae_jax.objectives.objective import Batch, Metrics, Objective, Params, accumulate, stage_key, to_float
from rae_jax.training import components
from rae_jax.training.optimizer import make_optimizer
from rae_jax.training.state import TrainState, update_ema


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`.

    Raises:
      ValueError: the section's `loss` asks for what cannot be.
    """
    section, key = config[stage], stage_key(config.seed, stage)
    train = section.train
    autoencoder = components.autoencoder(config)
    image_loss = ImageLoss(config, section.loss)
    optimizer, learning_rate = make_optimizer(train.optimizer)
    if image_loss.noisy_fakes and train.gradient_accumulation > 1:
        raise ValueError(
            "loss.discriminator_fakes='noisy' keeps the images of the whole batch, which train.gradient_accumulation="
            f"{train.gradient_accumulation} does not; set it to 1, or the fakes to 'clean'"
        )

    def encode(state: TrainState, images: jax.Array) -> jax.Array:
        return autoencoder.apply({"params": {"encoder": state.frozen["encoder"]}}, images, method="tokens")

    def decode(decoder: Params, tokens: jax.Array) -> jax.Array:
        return autoencoder.apply({"params": {"decoder": decoder}}, tokens, method="decode")

    def init(init_key: jax.Array, batch: Batch) -> TrainState:
        del batch  # the architecture fixes every shape
        decoder_key, discriminator_key = jax.random.split(init_key)
        params = components.decoder_init(config)(decoder_key)
        state = TrainState.create(params, optimizer.init(params))
        return state.replace(discriminator=image_loss.init_discriminator(discriminator_key))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        decoder_key, discriminator_key = jax.random.split(jax.random.fold_in(key, state.step))
        images = to_float(batch)
        clean = encode(state, images)

        def decoder_gradients(part: Batch, part_key: jax.Array) -> tuple[Params, Metrics, jax.Array | None]:
            noise_key, loss_key = jax.random.split(part_key)
            noisy = noise_augmentation(noise_key, part["tokens"], section.noise_tau, section.noise_distribution)
            decoded, pull_back = jax.vjp(lambda params: decode(params, noisy), state.params)
            by_pixel, metrics = image_loss.gradient(
                state, part["images"], decoded, loss_key, lambda pixels: pull_back(pixels)[0]["pixels"]["kernel"]
            )
            return pull_back(by_pixel)[0], metrics, decoded if image_loss.noisy_fakes else None

        gradients, metrics, noisy_decoded = accumulate(
            decoder_gradients, {"tokens": clean, "images": images}, decoder_key, train.gradient_accumulation
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"gradient_norm": optax.tree.norm(gradients), "learning_rate": learning_rate(state.step)}
        discriminator = None
        if image_loss.adversarial:
            discriminator, more = image_loss.train_discriminator(
                state,
                images,
                lambda: noisy_decoded if image_loss.noisy_fakes else decode(params, clean),
                discriminator_key,
            )
            metrics |= more
        return state.replace(
            step=state.step + 1,
            params=params,
            ema_params=update_ema(state.ema_params, params, train.ema_decay),
            opt_state=opt_state,
            discriminator=discriminator,
        ), metrics

    def pictures(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        images = to_float(batch)
        return {"original": images, "reconstruction": decode(state.ema_params, encode(state, images))}

    return Objective(
        init=init,
        train_step=train_step,
        frozen={"encoder": components.encoder_init(config), **image_loss.frozen},
        pictures=pictures,
    )
