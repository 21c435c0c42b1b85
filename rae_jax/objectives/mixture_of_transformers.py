"""Mixture of transformers: flow matching of the noised images in packs, and next tokens where a text is to be learned.

Bagel's training, on the latents of any autoencoder. `data/pack_batches.py` makes the batches; the conditions have been
left out there. The first loss is the mean over the noised tokens of all devices, the second over their labelled ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.components.generators import time_shift
from rae_jax.components.language import language_model
from rae_jax.components.latent_spaces import by_name, latent_space, stats
from rae_jax.components.mixtures import mixture, rows
from rae_jax.data.packing import NO_LABEL
from rae_jax.flow.path import velocity_target
from rae_jax.flow.times import shift_times
from rae_jax.interop.bagel import from_language_model
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.models.language_model import cross_entropy
from rae_jax.models.mixture_of_transformers import Images, Texts
from rae_jax.models.pack import Places
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key

SMALL = 1e-9  # of a sum of weights, where there is none
LIKELY_CAUSE = "A row without an image to be made has no loss"


def velocity_loss(velocity: jax.Array, target: jax.Array, shares: jax.Array) -> jax.Array:
    """The squared error `[B, N, C]`, mean over channels and summed over tokens by their `shares: [B, N]`."""
    return jnp.sum(jnp.mean(jnp.square(velocity - target), axis=-1) * shares)


def shares(weights: jax.Array, parts: int = 1) -> jax.Array:
    """Weights of tokens `[B, N]` as shares of their sum over all devices, times the `parts` a batch is computed in."""
    return weights * (parts / jnp.maximum(jnp.sum(weights), SMALL))


def noised_times(key: jax.Array, shape: tuple[int, ...], shift: float) -> jax.Array:
    """A time for each image: the sigmoid of a normal number, shifted."""
    return shift_times(jax.nn.sigmoid(jax.random.normal(key, shape)), shift)


def _initial(config: ConfigDict) -> dict[str, Any]:
    """The fields of an `Objective` that say what the mixture starts from."""
    if config.mixture.initial not in ("", "language_model"):
        raise ValueError(f"mixture.initial={config.mixture.initial!r} is neither 'language_model' nor ''")
    if not config.mixture.initial:
        return {}

    def begin(params: Params, initial: dict[str, Params]) -> Params:
        return from_language_model(initial["language_model"], params)

    return {"initial": by_name(language_model(config)), "begin": begin}


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`, the section of a mixture of transformers.

    Raises:
      ValueError: see `mixtures.mixture` and `mixtures.rows`.
    """
    section, pieces = config[stage], config[stage].train.gradient_accumulation
    velocity_weight, text_weight, reweighted = section.velocity_weight, section.text_weight, section.text_reweighting
    if text_weight and not section.model.language_head:
        raise ValueError(
            f"{stage}.text_weight={text_weight}, but {stage}.model.language_head is '': nothing scores texts"
        )
    network, shape, space, shift = mixture(config), rows(config), latent_space(config), time_shift(config)
    semantic = shape.semantic
    see = tokens_of(config) if semantic else None
    capacity, side = config.mixture.model.latent_capacity, shape.grid
    position = (jnp.arange(side)[:, None] * capacity + jnp.arange(side)).reshape(-1)
    semantic_position = jnp.arange(side**2)

    def pixels(batch: Batch, kind: str) -> jax.Array:
        """The images of a kind, `[B * M, S, S, 3]` in [0, 1]."""
        images = batch[f"{kind}_image"]
        return images.reshape(-1, *images.shape[2:]).astype(jnp.float32) / 255.0

    def placed(batch: Batch, kind: str) -> Places:
        return Places(*jnp.moveaxis(batch[f"{kind}_places"], -1, 0))

    def tokens(images: jax.Array, batch_size: int) -> jax.Array:
        return images.reshape(batch_size, -1, images.shape[-1])

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        size = batch["text_ids"].shape[0]
        statistics = LatentStatistics(**frozen["stats"])

        def images(kind: str, values: jax.Array, t: jax.Array) -> Images:
            where = jnp.broadcast_to(jnp.tile(position, values.shape[1] // side**2), values.shape[:2])
            return Images(values, where, placed(batch, kind), t)

        def latents(kind: str) -> jax.Array:
            return tokens(statistics.normalise(space.encode(frozen, pixels(batch, kind))), size)

        time_key, noise_key = jax.random.split(key)
        z = latents("noised")
        t = jnp.repeat(noised_times(time_key, (size, shape.images), shift), side**2, axis=1)
        eps = jax.random.normal(noise_key, z.shape)
        x_t = z + t[..., None] * (eps - z)
        noised, clean, seen = images("noised", x_t, t), None, None
        if shape.sources:
            values = latents("clean")
            clean = images("clean", values, jnp.zeros(values.shape[:2]))
        if semantic:
            values = tokens(see(frozen["encoder"], pixels(batch, "clean")), size)
            where = jnp.broadcast_to(jnp.tile(semantic_position, shape.sources), values.shape[:2])
            seen = Images(values, where, placed(batch, "semantic"))
        texts = Texts(batch["text_ids"], placed(batch, "text"))
        velocity, states = network.apply(params, texts, noised, clean, seen)
        value = velocity_loss(velocity, velocity_target(z, eps), batch["noised_shares"])
        metrics = {"images_in_rows": jnp.mean((noised.places.noise >= 0).astype(jnp.float32))}
        if not text_weight:
            return velocity_weight * value, metrics
        of_tokens = cross_entropy(network.apply(params, states, method="logits"), batch["text_labels"])
        text = jnp.sum(of_tokens * batch["text_shares"])
        metrics |= {"velocity_loss": value, "text_loss": text}
        return velocity_weight * value + text_weight * text, metrics

    def whole(batch: Batch) -> Batch:
        """The batch with what each token counts for among all of it, whatever part it is computed in."""
        counted = (placed(batch, "noised").noise >= 0).astype(jnp.float32)
        batch = batch | {"noised_shares": shares(counted, pieces)}
        if not text_weight:
            return batch
        labelled = batch["text_labels"] != NO_LABEL
        weights = batch["text_label_weights"] if reweighted else labelled.astype(jnp.float32)
        return batch | {"text_shares": shares(weights, pieces)}

    encoding = space.encoding | {"stats": stats(config)} | (by_name(encoder(config)) if semantic else {})
    return single_network(
        model_init=network.init,
        **_initial(config),
        loss=loss,
        whole=whole,
        train=config[stage].train,
        key=stage_key(config.seed, stage),
        frozen=encoding,
        reads_packs=True,
        likely_cause=LIKELY_CAUSE,
    )
