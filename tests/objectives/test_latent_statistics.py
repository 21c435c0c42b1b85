"""Mean and variance of all latents in one pass, against NumPy, and beyond the images that a float32 can count."""

import jax.numpy as jnp
import numpy as np

from configs import digits
from rae_jax.objectives import latent_statistics
from rae_jax.objectives.latent_statistics import merge
from rae_jax.training.state import TrainState


def test_batches_merged_one_by_one_give_the_moments_of_all_rows_that_count():
    rng = np.random.default_rng(0)
    values, weight = rng.normal(100, 0.1, (40, 3, 2)).astype(np.float32), rng.random(40) < 0.7
    moments = {"count": jnp.zeros((), jnp.int32), "mean": jnp.zeros((3, 2)), "squares": jnp.zeros((3, 2))}
    for i in range(0, 40, 8):
        moments = merge(moments, jnp.asarray(values[i : i + 8]), jnp.asarray(weight[i : i + 8], jnp.float32))
    seen = values[weight].astype(np.float64)
    assert int(moments["count"]) == len(seen)
    np.testing.assert_allclose(moments["mean"], seen.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments["squares"] / moments["count"], seen.var(axis=0), rtol=1e-3)


def test_more_images_are_counted_than_a_float32_has_whole_numbers():
    many = 2**24 + 3
    moments = {
        "count": jnp.asarray(many, jnp.int32),
        "mean": jnp.zeros((1, 1)),
        "squares": jnp.full((1, 1), 1.0 * many),
    }
    for _ in range(5):
        moments = merge(moments, jnp.ones((1, 1, 1)), jnp.ones(1))
    assert int(moments["count"]) == many + 5


def test_statistics_that_are_not_centred_have_no_mean_and_the_same_variance():
    moments = {"count": jnp.asarray(2, jnp.int32), "mean": jnp.full((16, 16), 3.0), "squares": jnp.full((16, 16), 8.0)}
    state = TrainState(step=jnp.zeros((), jnp.int32), params=moments, ema_params={}, opt_state={})
    config = digits.get_config("tiny")
    for centred, mean in ((True, 3.0), (False, 0.0)):
        config.stats.centred = centred
        found = latent_statistics.make(config, "stats").finish(state)
        assert np.all(found["mean"] == mean) and np.all(found["variance"] == 4.0)
