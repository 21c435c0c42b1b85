import jax
import jax.numpy as jnp
import numpy as np

from rae_jax.objectives.objective import accumulate


def test_parts_average_to_the_whole_batch():
    x = jax.random.normal(jax.random.key(0), (12, 3))
    w = jnp.arange(3.0)

    def step(piece, key):
        return jax.value_and_grad(lambda w: jnp.mean((piece["x"] @ w - 1) ** 2))(w)

    whole = accumulate(step, {"x": x}, jax.random.key(1), 1)
    parts = accumulate(step, {"x": x}, jax.random.key(1), 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, parts)


def test_each_part_draws_its_own_numbers():
    batch = {"x": jnp.zeros(8)}
    draws = accumulate(lambda piece, key: jax.random.normal(key, (1000,)), batch, jax.random.key(0), 4)
    assert abs(float(jnp.std(draws)) - 0.5) < 0.05  # the mean of four independent standard normals
