"""Matrix products of odd widths, as GPUs get them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rae_jax.models.layers import product


def program(platform: str, shape: tuple[int, int], dtype: str = "bfloat16") -> str:
    x, kernel = jnp.ones((4, shape[0]), dtype), jnp.ones(shape, dtype)
    gradient = jax.jit(jax.grad(lambda x, kernel: jnp.sum(product(x, kernel).astype(jnp.float32)), argnums=(0, 1)))
    return gradient.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("shape", [(256, 341), (341, 256), (5461, 130)])
def test_gpus_multiply_widths_that_they_can_read(shape):
    filled = "x".join(str(-(-side // 128) * 128 if side % 8 else side) for side in shape)
    assert f"tensor<{filled}xbf16>" in program("cuda", shape)
    for platform in ("cpu", "tpu"):
        assert "stablehlo.pad" not in program(platform, shape)


@pytest.mark.parametrize("shape, dtype", [((256, 344), "bfloat16"), ((256, 341), "float32"), ((100, 10), "bfloat16")])
def test_what_gpus_can_read_and_small_layers_are_left_as_they_are(shape, dtype):
    assert "stablehlo.pad" not in program("cuda", shape, dtype)


@pytest.mark.parametrize("shape", [(256, 341), (341, 256), (341, 341)])
def test_zeros_change_neither_value_nor_gradient(monkeypatch, shape):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arguments, cuda, default: cuda(*arguments))
    rng = np.random.default_rng(0)
    x, kernel, cotangent = (
        jnp.asarray(rng.integers(-3, 4, size), jnp.bfloat16) for size in ((2, 5, shape[0]), shape, (2, 5, shape[1]))
    )  # sums of such are exact
    value, pull = jax.vjp(product, x, kernel)
    d_x, d_kernel = pull(cotangent)
    exact = [np.asarray(a, np.float32) for a in (x, kernel, cotangent)]
    np.testing.assert_array_equal(value, jnp.asarray(exact[0] @ exact[1], jnp.bfloat16))
    np.testing.assert_array_equal(d_x, jnp.asarray(exact[2] @ exact[1].T, jnp.bfloat16))
    np.testing.assert_array_equal(d_kernel, jnp.asarray(np.einsum("bni,bno->io", exact[0], exact[2]), jnp.bfloat16))
