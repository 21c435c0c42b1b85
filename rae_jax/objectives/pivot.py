"""Pivot regularisation: RPiAE's stage I, which trains encoder and decoder together to reconstruct.

The encoder is held to its pivot, the encoder as it was when the stage began, so that it keeps what it knows:

    L = L_rec + w_pivot MSE(f, sg f_pivot) + gan_weight * lambda * L_GAN

with L_rec, lambda and L_GAN as in `objectives/image_loss.py` and w_pivot as in `objectives/pivot_loss.py`. The pivot is
frozen: it takes part in the step as `frozen["encoder"]`, and is neither updated, checkpointed nor left to later stages.

With both halves of the bridge among `trains`, everything is trained at once (the baseline of Table 5a): the decoder
sees what the bridge restores, and the bridge's own terms, features and KL divergence, are added with the weights of
`config.bridge`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.decoders import decoder, images_of, last_kernel
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.components.latent_spaces import bridge_decoder, bridge_encoder, by_name, feature_stats
from rae_jax.models.autoencoder import LatentStatistics, noise_augmentation
from rae_jax.objectives.bridge import latent_of
from rae_jax.objectives.image_loss import ImageLoss
from rae_jax.objectives.objective import Objective
from rae_jax.objectives.pivot_loss import pivot_loss, pivot_weight
from rae_jax.objectives.reconstruction import reconstructing
from rae_jax.training.state import TrainState

BRIDGE = ("bridge_encoder", "bridge_decoder")
CHOICES = {
    "pivot_features": ("plain", "normalised"),
    "pivot_balance": ("adaptive", "fixed"),
    "pivot_balance_layer": ("scale", "kernel"),
}


def last_layer(encoder: Params, layer: str) -> jax.Array:
    """The part of a ViT's parameters (or their gradient) by which the pivot loss is balanced, in its last block.

    `layer` is "scale", the second layer scale `[D]`, or "kernel", that of the last linear layer `[mlp_dim, D]`.

    Raises:
      ValueError: the encoder has no layer scales.
    """
    # Stacked blocks have no gradient of their own: use an encoder without `scan`, or the whole backward pass is made.
    block = jax.tree.map(lambda x: x[-1], encoder["blocks"]) if "blocks" in encoder else _last_block(encoder)
    if layer == "scale" and "mlp_scale" not in block:
        raise ValueError("pivot_balance_layer='scale', but the encoder has no layer scales; use 'kernel'")
    return block["mlp_scale"] if layer == "scale" else block["mlp"]["down"]["kernel"]


def _last_block(encoder: Params) -> Params:
    depth = sum(name.startswith("blocks_") for name in encoder)
    return encoder[f"blocks_{depth - 1}"]


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`.

    Raises:
      ValueError: a field of the section has a value that means nothing.
    """
    section, trains = config[stage], tuple(config[stage].trains)
    for field, known in CHOICES.items():
        if section[field] not in known:
            raise ValueError(f"{stage}.{field}={section[field]!r} is not one of {list(known)}")
    if set(trains) not in ({"encoder", "decoder"}, {"encoder", "decoder", *BRIDGE}):
        raise ValueError(
            f"{stage}.trains={trains} is neither encoder and decoder nor these with {' and '.join(BRIDGE)}"
        )
    if unknown := set(section.initial) - set(trains):
        raise ValueError(f"{stage}.initial names {sorted(unknown)}, which {stage}.trains does not")
    joint, pivoted = BRIDGE[0] in trains, section.pivot_weight > 0
    normalised = joint or (pivoted and section.pivot_features == "normalised")
    encode, to_images, image_loss = tokens_of(config), images_of(config), ImageLoss(config, section.loss)
    parts = by_name(encoder(config), decoder(config))
    if joint:
        compress, restore = bridge_encoder(config), bridge_decoder(config)
        parts |= by_name(compress, restore)
        latent, feature_weight, kl_weight = config.bridge.latent, config.bridge.feature_weight, config.bridge.kl_weight
    tau, distribution = section.noise_tau, section.noise_distribution
    of_normalised, adaptive = section.pivot_features == "normalised", section.pivot_balance == "adaptive"
    pivot_target, fixed_steps, layer = section.pivot_weight, section.pivot_fixed_steps, section.pivot_balance_layer

    def decode(
        params: Params, frozen: dict[str, Params], tokens: jax.Array, clean: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Images of (noisy) tokens, the bridge's weighted loss, and its terms; without a key, by the latent's mode."""
        if not joint:
            return to_images(params["decoder"], tokens), jnp.zeros(()), {}
        statistics = LatentStatistics(**frozen["feature_stats"])
        posterior = compress.apply(params["bridge_encoder"], statistics.normalise(tokens))
        z = posterior.mode() if key is None else latent_of(posterior, latent, key)
        restored = restore.apply(params["bridge_decoder"], z)
        target = jax.lax.stop_gradient(statistics.normalise(clean))
        terms = {"feature_mse": jnp.mean(jnp.square(restored - target)), "kl": posterior.kl_mean()}
        images = to_images(params["decoder"], restored, statistics)
        return images, feature_weight * terms["feature_mse"] + kl_weight * terms["kl"], terms

    def prepare(frozen: dict[str, Params], images: jax.Array) -> jax.Array | None:
        """The pivot's tokens."""
        return encode(frozen["encoder"], images) if pivoted else None

    def distance(tokens: jax.Array, pivot: jax.Array, frozen: dict[str, Params]) -> jax.Array:
        if of_normalised:
            statistics = LatentStatistics(**frozen["feature_stats"])
            tokens, pivot = statistics.normalise(tokens), statistics.normalise(pivot)
        return pivot_loss(tokens, pivot)

    def gradients(state: TrainState, pivot: jax.Array | None, images: jax.Array, key: jax.Array) -> Any:
        noise_key, latent_key, loss_key = jax.random.split(key, 3)
        rest = {name: params for name, params in state.params.items() if name != "encoder"}
        tokens, pull_to_encoder = jax.vjp(lambda params: encode(params, images), state.params["encoder"])

        def reconstruct(params: Params, tokens: jax.Array) -> tuple[tuple[jax.Array, jax.Array], dict[str, jax.Array]]:
            noisy = noise_augmentation(noise_key, tokens, tau, distribution)
            decoded, bridge, terms = decode(params, state.frozen, noisy, tokens, latent_key)
            return (decoded, bridge), terms

        (decoded, bridge), pull_back, terms = jax.vjp(reconstruct, rest, tokens, has_aux=True)

        def by_last_kernel(pixels: jax.Array) -> jax.Array:
            return last_kernel(parts["decoder"], pull_back((pixels, jnp.zeros(())))[0]["decoder"])

        by_pixel, of_reconstruction, metrics = image_loss.gradient(state, images, decoded, loss_key, by_last_kernel)
        by_rest, by_token = pull_back((by_pixel, jnp.ones(())))
        metrics = {**metrics, **terms, "loss": metrics["loss"] + bridge}
        if pivoted:
            value, pivot_by_token = jax.value_and_grad(distance)(tokens, pivot, state.frozen)
            weight = jnp.asarray(pivot_target)
            if adaptive:
                layers = [
                    last_layer(pull_to_encoder(by)[0], layer)
                    for by in (pull_back((of_reconstruction, jnp.zeros(())))[1], pivot_by_token)
                ]
                weight = pivot_weight(state.step, *layers, weight=pivot_target, fixed_steps=fixed_steps)
            by_token = by_token + weight * pivot_by_token
            metrics |= {"pivot": value, "pivot_weight": weight, "loss": metrics["loss"] + weight * value}
        return {**by_rest, "encoder": pull_to_encoder(by_token)[0]}, metrics, decoded

    def reconstruct(params: Params, frozen: dict[str, Params], pivot: jax.Array | None, images: jax.Array) -> jax.Array:
        del pivot
        tokens = encode(params["encoder"], images)
        return decode(params, frozen, tokens, tokens, None)[0]

    return reconstructing(
        config,
        stage,
        image_loss,
        model_init=lambda key: {
            name: part.init(jax.random.fold_in(key, i)) for i, (name, part) in enumerate(parts.items())
        },
        prepare=prepare,
        gradients=gradients,
        reconstruct=reconstruct,
        frozen=({"encoder": parts["encoder"]} if pivoted else {})
        | ({"feature_stats": feature_stats(config)} if normalised else {}),
        initial={name: parts[name] for name in section.initial},
        begin=lambda params, initial: {**params, **initial},
    )
