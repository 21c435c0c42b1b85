"""Masked autoencoding: pretrains the small encoder of the laptop experiment, where no published one can serve.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (2022): the encoder sees a quarter of the patches, a light
head predicts the pixels of the others.

What predicts pixels best gives most of its tokens' variance to what most pixels share, such as colour, and a generator,
whose loss is a squared error, then learns the rest late. So the tokens' covariance can be kept near the identity, as
VICReg keeps that of whole images (Bardes et al., 2022).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.decoders import masked_autoencoding_head
from rae_jax.components.encoders import around, encoder, tokens_shape
from rae_jax.components.encoders import grid as encoder_grid
from rae_jax.models.layers import named
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key, to_float
from rae_jax.training.state import TrainState


class Predicted(NamedTuple):
    """What is compared: `target` and `pixels` `[B, H, W, 3]`, normalised; `hidden: [B, N]`; `tokens: [B, M, D]`."""

    target: jax.Array
    pixels: jax.Array
    hidden: jax.Array
    tokens: jax.Array


def random_masking(key: jax.Array, batch: int, num_tokens: int, mask_ratio: float) -> tuple[jax.Array, jax.Array]:
    """Which patches each image keeps: indices `[B, M]` and the mask `[B, N]`, True where a patch is hidden."""
    order = jnp.argsort(jax.random.uniform(key, (batch, num_tokens)), axis=1)
    num_kept = num_tokens - int(num_tokens * mask_ratio)
    keep = order[:, :num_kept]
    hidden = jnp.ones((batch, num_tokens), bool).at[jnp.arange(batch)[:, None], keep].set(False)
    return keep, hidden


def patches_of(images: jax.Array, grid: int) -> jax.Array:
    """`[B, H, W, 3] -> [B, grid * grid, P * P * 3]`."""
    return rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", h=grid, w=grid)


def covariance_error(tokens: jax.Array) -> jax.Array:
    """How far the covariance of `tokens: [..., D]` over a batch is from the identity: its squared error over D.

    0 where all channels have variance 1 and are uncorrelated, D - 1 where all are the same one of variance 1.
    """
    flat = tokens.astype(jnp.float32).reshape(-1, tokens.shape[-1])
    centred = flat - jnp.mean(flat, axis=0)
    covariance = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST) / len(flat)
    return jnp.sum(jnp.square(covariance - jnp.eye(len(covariance)))) / len(covariance)


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage` (whose section gives the mask ratio, the head and the training numbers)."""
    section, trained, head = config[stage], encoder(config), masked_autoencoding_head(config, stage)
    frame, grid, (num_tokens, width) = around(config), encoder_grid(config), tokens_shape(config)
    mask_ratio, weight = section.mask_ratio, section.covariance_weight
    size, patch_size = config.encoder.input_size, config.encoder.model.patch_size
    mean, std = tuple(config.encoder.image_mean), tuple(config.encoder.image_std)
    key = stage_key(config.seed, stage)

    def model_init(key: jax.Array) -> Params:
        encoder_key, head_key, token_key = jax.random.split(key, 3)
        return {
            "encoder": trained.init(encoder_key),
            "head": head.init(head_key),
            "mask_token": named(jax.nn.initializers.normal(0.02), None)(token_key, (width,), jnp.float32),
        }

    def predict(params: Params, images: jax.Array, key: jax.Array) -> Predicted:
        target = frame.apply({}, images, method="preprocess")
        keep, hidden = random_masking(key, images.shape[0], num_tokens, mask_ratio)
        tokens = trained.apply(params["encoder"], target, keep=keep)
        full = jnp.broadcast_to(params["mask_token"], (images.shape[0], num_tokens, width))
        full = full.at[jnp.arange(images.shape[0])[:, None], keep].set(tokens)
        return Predicted(target, head.apply(params["head"], full), hidden, tokens)

    def loss(params: Params, frozen: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        del frozen
        target, pixels, hidden, tokens = predict(params, to_float(batch), key)
        error = jnp.mean(jnp.square(patches_of(pixels, grid) - patches_of(target, grid)), axis=-1)
        masked = jnp.sum(error * hidden) / jnp.sum(hidden)
        if not weight:
            return masked, {}
        of_tokens = covariance_error(tokens)
        return masked + weight * of_tokens, {"masked_loss": masked, "covariance_error": of_tokens}

    def pictures(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        images = to_float(batch)
        _, pixels, hidden, _ = predict(state.ema_params, images, key)
        predicted = pixels * jnp.asarray(std) + jnp.asarray(mean)
        seen = jax.image.resize(images, (images.shape[0], size, size, 3), "linear")
        shown = jnp.where(hidden[..., None], 0.5, patches_of(seen, grid))
        shown = rearrange(shown, "b (h w) (p q c) -> b (h p) (w q) c", h=grid, p=patch_size, c=3)
        return {"original": seen, "masked": shown, "prediction": predicted}

    return single_network(
        model_init=model_init,
        loss=loss,
        train=section.train,
        key=key,
        frozen={},
        pictures=pictures,
        within="encoder",
    )
