"""Text to image: language model, adapters and DiT in one, on conversations with images (RAE, appendix N; Scale-RAE).

The language model learns the next token of answers, and at the queries that stand for an image to come what the DiT has
to be told to make it: `L = L_c + 2 L_d`, cross-entropy over all labels of the batch and velocity loss over all images
that are answers. The encoder, whose tokens are both what questions show and what answers are to be, is frozen.
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.components.generators import time_shift
from rae_jax.components.language import adapters, language_model, reader, text_dit, tokenizer
from rae_jax.components.latent_spaces import by_name, latent_space, stats, tokens_are_latents
from rae_jax.components.telling import SMALL
from rae_jax.data.conversations import IGNORED
from rae_jax.flow.path import interpolate, velocity_target
from rae_jax.flow.times import sample_times
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.models.language_model import cross_entropy
from rae_jax.models.text_to_image import Reader, TokenCondition
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key
from rae_jax.sampling.generator import shown_samples
from rae_jax.sampling.prompted import prompted_generator


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`.

    Raises:
      ValueError: it is to train other components than there are, or the tokenizer is not the language model's.
    """
    section, trains = config[stage], tuple(config[stage].trains)
    tokenizer(config)  # is another's, or there
    painting = "text_dit" in trains
    if set(trains) | {"text_dit"} != {"language_model", "adapters", "text_dit"}:
        raise ValueError(f"{stage}.trains={trains} is neither language_model, adapters and text_dit nor the first two")
    if config.language_model.context % section.loss_chunk:
        raise ValueError(
            f"{stage}.loss_chunk={section.loss_chunk} does not divide language_model.context="
            f"{config.language_model.context}"
        )
    parts, space = by_name(language_model(config), adapters(config), text_dit(config)), latent_space(config)
    read, encode, dit = reader(config), tokens_of(config), parts["text_dit"]
    image_weight, chunk, rows_of_batch = section.image_weight, section.loss_chunk, section.train.gradient_accumulation
    shift, dropout = time_shift(config), section.condition_dropout
    times = dict(mean=section.logit_normal_mean, std=section.logit_normal_std, shift=shift)
    distribution, of_encoder = section.time_distribution, tokens_are_latents(config)
    parts = {name: parts[name] for name in trains}

    def whole(batch: Batch) -> Batch:
        """The batch with what one label and one answer count for among all of it, whatever part they are in."""
        labels = jnp.sum(batch["labels"][:, 1:] != IGNORED)
        answers = jnp.sum(batch["answer_img_mask"])
        rows = len(batch["labels"])
        return batch | {
            "label_share": jnp.full(rows, rows_of_batch / jnp.maximum(labels, 1)),
            "answer_share": jnp.full(rows, rows_of_batch / (answers + SMALL)),
        }

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        images = batch["image"].reshape(-1, *batch["image"].shape[2:]).astype(jnp.float32) / 255.0
        features = encode(frozen["encoder"], images)
        with parts["language_model"].precise():
            hidden = read.hidden(params, read.input(params, features, batch))
            of_tokens = chunked_losses(read, params, hidden, batch["labels"], chunk)
            condition = read.conditions(params, hidden, batch["reverse_vti"]) if painting else None
        language = jnp.sum(jnp.sum(of_tokens, axis=1) * batch["label_share"])
        if not painting:
            return language, {"language_loss": language}
        latents = features if of_encoder else space.encode(frozen, images)
        z = LatentStatistics(**frozen["stats"]).normalise(latents)
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        t = sample_times(time_key, len(z), distribution, **times)
        eps = jax.random.normal(noise_key, z.shape)
        told = TokenCondition(condition, jax.random.bernoulli(drop_key, dropout, (len(z),)))
        v = dit.apply(params["text_dit"], interpolate(z, eps, t), t, told)
        of_images = jnp.mean(jnp.square(v - velocity_target(z, eps)), axis=(1, 2))
        share = batch["answer_img_mask"] * batch["answer_share"][:, None]
        image = jnp.sum(of_images * share.reshape(-1))
        return language + image_weight * image, {"language_loss": language, "image_loss": image}

    def init(key: jax.Array) -> Params:
        return {name: part.init(jax.random.fold_in(key, i)) for i, (name, part) in enumerate(parts.items())}

    frozen = by_name(encoder(config)) | ({} if of_encoder or not painting else space.encoding)
    hooks: dict[str, Any] = {}
    if painting and config.sampling.num_steps:
        draw = prompted_generator(config)

        def generate(params: Params, frozen: dict[str, Params], keys: jax.Array, asked: Any) -> jax.Array:
            return draw(params["text_dit"], frozen | params, keys, asked)

        hooks = dict(wanted=space.decoding, **shown_samples(config, generate))
    return single_network(
        model_init=init,
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen=frozen | ({"stats": stats(config)} if painting else {}),
        whole=whole,
        grouped=dict(others={"image": section.image_optimizer}, group=group_of),
        reads_conversations=True,
        **hooks,
    )


def group_of(path: tuple[str, ...]) -> str:
    """The optimizer's group of a parameter: "image" for the DiT and the projector of its conditions (`diff_head`)."""
    return "image" if path[0] == "text_dit" or path[:2] == ("adapters", "to_condition") else ""


def chunked_losses(read: Reader, params: Params, hidden: jax.Array, labels: jax.Array, chunk: int) -> jax.Array:
    """Cross-entropy of each position's next token, `[B, L]`, zero where there is none to learn.

    Logits are made of `chunk` positions at a time, and again in the backward pass: all of them would be larger than
    everything else. Where one chunk is all, they are kept.
    """
    following = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED)
    if chunk == labels.shape[1]:
        return cross_entropy(read.logits(params, hidden), following)

    @jax.checkpoint
    def of_chunk(carry: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        states, wanted = part
        return carry, cross_entropy(read.logits(params, states), wanted)

    def chunks(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(len(x), -1, chunk, *x.shape[2:]), 1, 0)

    _, losses = jax.lax.scan(of_chunk, None, (chunks(hidden), chunks(following)))
    return jnp.moveaxis(losses, 0, 1).reshape(labels.shape)
