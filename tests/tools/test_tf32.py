"""TF32 emulated: NumPy's integers say how a factor is rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from rae_jax.components.generators import flow_map
from rae_jax.components.latent_spaces import latent_space
from tools.findings.tf32 import with_rounded_factors


def rounded_mantissa(x: np.ndarray, bits: int = 10) -> np.ndarray:
    """Float32 to the nearest with so many mantissa bits, ties to even, by arithmetic on its 32 bits."""
    dropped = 23 - bits
    integers = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    odd = integers >> dropped & 1
    nearest = (integers + (1 << (dropped - 1)) - 1 + odd) >> dropped << dropped
    return nearest.astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_product_is_that_of_factors_rounded_to_ten_bits(compiled):
    random = np.random.default_rng(0)
    x, y = (random.normal(size=(7, 64)).astype(np.float32), random.normal(size=(64, 5)).astype(np.float32))
    emulated = with_rounded_factors(jnp.matmul)
    found = np.asarray((jax.jit(emulated) if compiled else emulated)(x, y))
    truth = rounded_mantissa(x).astype(np.float64) @ rounded_mantissa(y).astype(np.float64)
    np.testing.assert_allclose(found, truth, atol=2e-5)
    assert np.abs(found - x.astype(np.float64) @ y.astype(np.float64)).max() > 1e-3


@pytest.fixture(scope="module")
def network():
    """A flow map `(params, z, t) -> u` of random parameters, none of them zero, and its arguments."""
    config = digits.get_config("tiny")
    part = flow_map(config)
    keys = iter(jax.random.split(jax.random.key(0), 100))
    params = jax.tree.map(lambda x: 0.3 * jax.random.normal(next(keys), x.shape), part.structure())
    z, t, r = jax.random.normal(next(keys), (4, *latent_space(config).shape)), jnp.linspace(0.2, 0.9, 4), jnp.zeros(4)
    return lambda params, z, t: part.apply(params, z, t, jnp.arange(4), r), (params, z, t)


def test_without_rounding_the_network_is_itself(network):
    function, arguments = network
    with jax.disable_jit():  # each operation by itself: what is compiled as one adds in another order
        plain = function(*arguments)
        np.testing.assert_array_equal(with_rounded_factors(function, 23)(*arguments), plain)
        rounded = with_rounded_factors(function)(*arguments)
    error = jnp.linalg.norm(rounded - plain) / jnp.linalg.norm(plain)
    assert 1e-5 < error < 1e-2


def test_every_product_of_the_network_is_rounded(network):
    """As many roundings as there are factors, wherever they stand in the program."""
    function, arguments = network

    def count(text: str, name: str) -> int:
        return text.count(f" {name}")

    plain = jax.jit(function).lower(*arguments).as_text()
    rounded = jax.jit(with_rounded_factors(function)).lower(*arguments).as_text()
    products = count(rounded, "stablehlo.dot_general")
    assert count(rounded, "stablehlo.reduce_precision") == 2 * products > 2 * 10
    assert count(plain, "stablehlo.reduce_precision") == 0


def test_it_has_the_derivative_of_a_product_of_rounded_factors():
    x, y = jnp.float32([[1.0 + 2**-12, 3.0]]), jnp.float32([[2.0], [5.0 + 2**-11]])
    _, tangent = jax.jvp(with_rounded_factors(jnp.matmul), (x, y), (jnp.ones_like(x), jnp.zeros_like(y)))
    np.testing.assert_array_equal(tangent, [[7.0]])


def test_products_where_it_cannot_go_are_refused():
    def repeated(x):
        return jax.lax.scan(lambda y, _: (y @ x, None), x, None, length=3)[0]

    with pytest.raises(ValueError, match="the products of 'scan' cannot be rounded"):
        with_rounded_factors(repeated)(jnp.eye(3))
    with pytest.raises(ValueError, match="the products of 'conv_general_dilated'"):
        with_rounded_factors(lambda x: jnp.convolve(x, x))(jnp.ones(4))


def test_loops_without_products_are_left_as_they_are():
    def summed(x):
        return jax.lax.scan(lambda y, z: (y + z, y), 0.0, x)[0] + x @ x

    x = jnp.arange(4.0)
    assert with_rounded_factors(summed)(x) == summed(x)
