"""The posterior of the variational encoders (RPiAE's bridge, the KL-VAE): a Gaussian with independent elements."""

import jax
import jax.numpy as jnp
from flax import struct

LOGVAR_RANGE = (-30.0, 20.0)


class DiagonalGaussian(struct.PyTreeNode):
    """`N(mean, exp(logvar))` for every element on its own; both arrays `[B, ..., C]`, float32."""

    mean: jax.Array
    logvar: jax.Array

    @classmethod
    def from_moments(cls, moments: jax.Array) -> "DiagonalGaussian":
        """From `[B, ..., 2 C]`, means and then log-variances; the latter are clamped to [-30, 20]."""
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return cls(mean, jnp.clip(logvar, *LOGVAR_RANGE))

    @property
    def std(self) -> jax.Array:
        """Standard deviation, `[B, ..., C]`."""
        return jnp.exp(0.5 * self.logvar)

    def mode(self) -> jax.Array:
        """The likeliest latent, which is the mean."""
        return self.mean

    def sample(self, key: jax.Array) -> jax.Array:
        """`mean + std n` with `n ~ N(0, I)`."""
        return self.mean + self.std * jax.random.normal(key, self.mean.shape)

    def kl(self) -> jax.Array:
        """Divergence from N(0, I) of each sample's posterior, `[B]`: the sum of `(mean^2 + var - 1 - logvar) / 2`."""
        return 0.5 * jnp.sum(self._excess(), axis=tuple(range(1, self.mean.ndim)))

    def kl_mean(self) -> jax.Array:
        """RPiAE's KL term, a scalar: the mean of `mean^2 + var - 1 - logvar` over all elements, without one half."""
        return jnp.mean(self._excess())

    def _excess(self) -> jax.Array:
        return jnp.square(self.mean) + jnp.exp(self.logvar) - 1.0 - self.logvar
