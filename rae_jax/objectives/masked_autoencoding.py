"""Masked autoencoding: pretrains the small encoder of the laptop experiment, where no published one can serve.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (2022): the encoder sees a quarter of the patches, a light
head predicts the pixels of the others.
"""

from typing import Any

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


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage` (whose section gives the mask ratio, the head and the training numbers)."""
    section, trained, head = config[stage], encoder(config), masked_autoencoding_head(config, stage)
    frame, grid, (num_tokens, width) = around(config), encoder_grid(config), tokens_shape(config)
    mask_ratio, size, patch_size = section.mask_ratio, config.encoder.input_size, config.encoder.model.patch_size
    mean, std = tuple(config.encoder.image_mean), tuple(config.encoder.image_std)
    key = stage_key(config.seed, stage)

    def model_init(key: jax.Array) -> Params:
        encoder_key, head_key, token_key = jax.random.split(key, 3)
        return {
            "encoder": trained.init(encoder_key),
            "head": head.init(head_key),
            "mask_token": named(jax.nn.initializers.normal(0.02), None)(token_key, (width,), jnp.float32),
        }

    def predict(params: Params, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        pixels = frame.apply({}, images, method="preprocess")
        keep, hidden = random_masking(key, images.shape[0], num_tokens, mask_ratio)
        tokens = trained.apply(params["encoder"], pixels, keep=keep)
        full = jnp.broadcast_to(params["mask_token"], (images.shape[0], num_tokens, width))
        full = full.at[jnp.arange(images.shape[0])[:, None], keep].set(tokens)
        return pixels, head.apply(params["head"], full), hidden

    def loss(params: Params, frozen: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        del frozen
        pixels, predicted, hidden = predict(params, to_float(batch), key)
        error = jnp.mean(jnp.square(patches_of(predicted, grid) - patches_of(pixels, grid)), axis=-1)
        return jnp.sum(error * hidden) / jnp.sum(hidden), {}

    def pictures(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        images = to_float(batch)
        _, predicted, hidden = predict(state.ema_params, images, key)
        predicted = predicted * jnp.asarray(std) + jnp.asarray(mean)
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
