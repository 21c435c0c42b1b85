"""Latent statistics: the exact mean and variance of every latent element over the data set, in one pass.

Batches are merged by Chan, Golub and LeVeque's update, which stays accurate where the naive sum of squares would not.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.latent_spaces import latent_space
from rae_jax.objectives.objective import Batch, Metrics, Objective, to_float
from rae_jax.training.state import TrainState


def merge(moments: Params, values: jax.Array, weight: jax.Array) -> Params:
    """`moments` after also seeing the rows of `values: [B, ...]` whose `weight: [B]` is 1.

    `moments` holds `count`, `mean` and `squares`, the summed squared deviations from the mean. The count is an integer:
    a float32 stops counting at 2^24 images.
    """
    rows = weight.reshape(-1, *(1,) * (values.ndim - 1))
    count = jnp.sum(weight)
    mean = jnp.sum(values * rows, axis=0) / jnp.maximum(count, 1.0)
    squares = jnp.sum(jnp.square(values - mean) * rows, axis=0)
    total = moments["count"] + count.astype(jnp.int32)
    delta = mean - moments["mean"]
    share = count / jnp.maximum(total, 1)
    return {
        "count": total,
        "mean": moments["mean"] + delta * share,
        "squares": moments["squares"] + squares + jnp.square(delta) * moments["count"] * share,
    }


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`: nothing is optimised; the parameters are the running moments."""
    space, centred = latent_space(config, config[stage].get("autoencoder")), config[stage].centred

    def init(key: jax.Array, batch: Batch) -> TrainState:
        del key, batch
        moments = {"count": jnp.zeros((), jnp.int32), "mean": jnp.zeros(space.shape), "squares": jnp.zeros(space.shape)}
        return TrainState(step=jnp.zeros((), jnp.int32), params=moments, ema_params={}, opt_state={})

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        latents = space.encode(state.frozen, to_float(batch))
        moments = merge(state.params, latents, batch["mask"].astype(jnp.float32))
        metrics = {
            "images_seen": moments["count"].astype(jnp.float32),
            "mean_variance": jnp.mean(moments["squares"]) / jnp.maximum(moments["count"], 1),
        }
        return state.replace(step=state.step + 1, params=moments), metrics

    def finish(state: TrainState) -> Params:
        moments = state.params
        mean = moments["mean"] if centred else jnp.zeros(space.shape)
        return {"mean": mean, "variance": moments["squares"] / moments["count"]}

    return Objective(
        init=init,
        train_step=train_step,
        frozen=space.encoding,
        finish=finish,
        one_epoch=True,
    )
