"""The loss of decoded images: mean absolute error, LPIPS and the adversarial loss, and the discriminator's own step.

    L = L_rec + gan_weight * lambda * L_GAN,  L_rec = |x^ - x|_1 + lpips_weight * LPIPS(x^, x)

with lambda, the adaptive weight, the ratio of the gradients' norms of L_rec and L_GAN (RAE, Section 3). The loss is
given as its gradient by the images `x^`, so that an objective pulls it back once through whatever it trains: the
decoder alone (RAE) or encoder and decoder (RPiAE). Before a term's first step nothing of it is computed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from rae_jax.components import critics
from rae_jax.components.component import Component, Params
from rae_jax.models import diffaug
from rae_jax.objectives import adversarial
from rae_jax.objectives.objective import Metrics
from rae_jax.training.optimizer import make_optimizer
from rae_jax.training.state import TrainState

DISCRIMINATOR_LOSSES = {
    "hinge": adversarial.hinge_discriminator_loss,
    "vanilla": adversarial.vanilla_discriminator_loss,
}
FAKES = ("clean", "noisy")
BALANCED_BY = ("last_layer", "pixels")


class ImageLoss:
    """The loss that `section`, a `loss` section of the config, describes.

    Attributes:
      frozen: the networks that it needs in `state.frozen`, as in `Objective.frozen`.
      adversarial: whether there is a discriminator; its part of the state is `state.discriminator`.
      noisy_fakes: whether the discriminator sees the images that the decoder's step made, instead of new ones.

    Raises:
      ValueError: a field has a value that means nothing.
    """

    def __init__(self, config: ConfigDict, section: ConfigDict):
        for field, known in (("discriminator_fakes", FAKES), ("adaptive_weight", BALANCED_BY)):
            if section[field] not in known:
                raise ValueError(f"loss.{field}={section[field]!r} is not one of {list(known)}")
        if (name := config.discriminator.loss) not in DISCRIMINATOR_LOSSES:
            raise ValueError(f"discriminator.loss={name!r} is not one of {sorted(DISCRIMINATOR_LOSSES)}")
        if section.gan_from_step < section.discriminator_from_step:
            raise ValueError(
                f"loss.gan_from_step={section.gan_from_step} is before loss.discriminator_from_step="
                f"{section.discriminator_from_step}: the decoder would learn from an untrained discriminator"
            )
        self._lpips_weight, self._lpips_from_step = section.lpips_weight, section.lpips_from_step
        self._lpips_range = tuple(section.lpips_range)
        self._gan_weight, self._gan_from_step = section.gan_weight, section.gan_from_step
        self._discriminator_from_step = section.discriminator_from_step
        self._by_last_layer, self._adaptive_maximum = section.adaptive_weight == "last_layer", section.adaptive_maximum
        self._discriminator_loss = DISCRIMINATOR_LOSSES[name]
        self.adversarial = section.gan_weight > 0
        self.noisy_fakes = section.discriminator_fakes == "noisy"
        self.frozen: dict[str, Component] = {}
        if section.lpips_weight > 0:
            self._lpips = self.frozen["lpips"] = critics.lpips(config)
        if self.adversarial:
            networks = config.discriminator
            self._dino = self.frozen["discriminator"] = critics.discriminator(config)
            self._discriminator = critics.with_heads(config)
            self._apart = networks.apart
            if self._apart < 1:
                raise ValueError(f"discriminator.apart={self._apart}: there is at least one discriminator")
            self._augmentation = dict(probability=networks.augmentation_probability, cutout=networks.cutout)
            self._optimizer, self._learning_rate = make_optimizer(section.discriminator_optimizer)

    def init_discriminator(self, key: jax.Array) -> dict[str, Any] | None:
        """`state.discriminator` before the first step: `heads`, `spectral` and `opt_state`; None without one.

        Of several that are trained apart every array has a leading axis; they begin alike.
        """
        if not self.adversarial:
            return None
        size = self._discriminator.dino.image_size
        variables = self._discriminator.init(key, jnp.zeros((1, size, size, 3)))
        heads = variables["params"]["heads"]
        one = {
            "heads": heads,
            "spectral": variables.get("spectral", {}),
            "opt_state": self._optimizer.init(heads),
        }
        if self._apart == 1:
            return one
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (self._apart, *jnp.shape(x))), one)

    def gradient(
        self,
        state: TrainState,
        images: jax.Array,
        decoded: jax.Array,
        key: jax.Array,
        by_last_layer: Callable[[jax.Array], Any],
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """The gradient of the loss by `decoded: [B, H, W, 3]`, that of L_rec alone, and what the loss was.

        Args:
          state: its `step`, `frozen` and `discriminator` are read.
          images: what `decoded` should be, `[B, H, W, 3]` in [0, 1].
          key: draws the augmentation.
          by_last_layer: pulls a gradient by `decoded` back to the decoder's last kernel. What it computes beyond that
            kernel's gradient is never used, and the compiler drops it.

        Returns:
          The gradients, and `loss`, `l1` and, where they are part of it, `lpips`, `gan_loss` and `adaptive_weight`;
          those are 0 before their first step.
        """
        step = state.step

        def from_step(first: int, loss: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
            """Value and gradient of a term, or zeros before its first step."""
            zeros = (jnp.zeros(()), jnp.zeros_like(decoded))
            return jax.lax.cond(step >= first, jax.value_and_grad(loss), lambda _: zeros, decoded)

        value, gradient = jax.value_and_grad(lambda x: jnp.mean(jnp.abs(x - images)))(decoded)
        metrics = {"l1": value}
        if self._lpips_weight > 0:
            lpips, by_pixel = from_step(self._lpips_from_step, lambda x: self._lpips_loss(x, images, state))
            value, gradient = value + self._lpips_weight * lpips, gradient + self._lpips_weight * by_pixel
            metrics["lpips"] = lpips
        of_reconstruction = gradient
        if self.adversarial:
            gan, by_pixel = from_step(self._gan_from_step, lambda x: self._gan_loss(x, state, key))
            measure = by_last_layer if self._by_last_layer else lambda pixels: pixels
            adaptive = adversarial.adaptive_weight(measure(gradient), measure(by_pixel), maximum=self._adaptive_maximum)
            adaptive = jnp.where(step >= self._gan_from_step, adaptive, 0.0)
            weight = self._gan_weight * adaptive
            value, gradient = value + weight * gan, gradient + weight * by_pixel
            metrics |= {"gan_loss": gan, "adaptive_weight": adaptive}
        return gradient, of_reconstruction, {"loss": value, **metrics}

    def _lpips_loss(self, decoded: jax.Array, images: jax.Array, state: TrainState) -> jax.Array:
        low, high = self._lpips_range
        a, b = (x * (high - low) + low for x in (images, decoded))
        return jnp.mean(self._lpips.apply(state.frozen["lpips"], a, b))

    def _gan_loss(self, decoded: jax.Array, state: TrainState, key: jax.Array) -> jax.Array:
        """The decoder's adversarial loss; the discriminator stays as it is, power iteration included."""

        def judged(discriminator: dict[str, Any], pixels: jax.Array, key: jax.Array) -> jax.Array:
            variables = {
                "params": {"dino": state.frozen["discriminator"], "heads": discriminator["heads"]},
                "spectral": discriminator["spectral"],
            }
            with self._dino.precise():
                return adversarial.generator_loss(self._discriminator.apply(variables, self._augment(key, pixels)))

        return jnp.mean(self._each(judged, state.discriminator, decoded * 2.0 - 1.0, key=key))

    def _each(
        self, function: Callable[..., Any], discriminator: dict[str, Any], *images: jax.Array, key: jax.Array
    ) -> Any:
        """`function(discriminator, *images, key)`; of several, of each and its part of the rows, results stacked.

        Raises:
          ValueError: the rows do not divide into so many parts.
        """
        if self._apart == 1:
            return function(discriminator, *images, key)
        if (rows := images[0].shape[0]) % self._apart:
            raise ValueError(f"{rows} images do not divide into discriminator.apart={self._apart} equal parts")
        parts = [x.reshape(self._apart, -1, *x.shape[1:]) for x in images]
        return jax.vmap(function)(discriminator, *parts, jax.random.split(key, self._apart))

    def _augment(self, key: jax.Array, images: jax.Array) -> jax.Array:
        return diffaug.augment(key, images, **self._augmentation)

    def train_discriminator(
        self, state: TrainState, images: jax.Array, decode: Callable[[], jax.Array], key: jax.Array
    ) -> tuple[dict[str, Any], Metrics]:
        """`state.discriminator` after one update, from `discriminator_from_step` on, and the metrics of it.

        Args:
          state: its `step` is that of the batch: the update before which the images were seen.
          images: the real ones, `[B, H, W, 3]` in [0, 1].
          decode: gives the decoded ones; called only when the update is made.
          key: draws the augmentation, for real and fake images apart.

        Returns:
          The new `state.discriminator`, and `discriminator_loss`, `discriminator_accuracy` (share of judgements that
          rate the real image above the decoded one) and `discriminator_learning_rate`; all 0 before the first update.
        """
        before, first = state.discriminator, self._discriminator_from_step

        def update_one(
            before: dict[str, Any], fakes: jax.Array, reals: jax.Array, key: jax.Array
        ) -> tuple[dict[str, Any], jax.Array, jax.Array]:
            fake_key, real_key = jax.random.split(key)

            def loss(heads: Params) -> tuple[jax.Array, tuple[Any, jax.Array]]:
                def judge(spectral: Any, side_key: jax.Array, side: jax.Array) -> tuple[jax.Array, Any]:
                    networks = {"dino": state.frozen["discriminator"], "heads": heads}
                    variables = {"params": networks, "spectral": spectral}
                    pixels = self._augment(side_key, side)
                    with self._dino.precise():
                        logits, new = self._discriminator.apply(variables, pixels, update=True, mutable=["spectral"])
                    return logits, new.get("spectral", {})

                # The fakes first, as in the reference: each judgement renews the power iteration.
                fake, spectral = judge(before["spectral"], fake_key, fakes)
                real, spectral = judge(spectral, real_key, reals)
                return self._discriminator_loss(real, fake), (spectral, adversarial.discriminator_accuracy(real, fake))

            (value, (spectral, accuracy)), gradient = jax.value_and_grad(loss, has_aux=True)(before["heads"])
            updates, opt_state = self._optimizer.update(gradient, before["opt_state"], before["heads"])
            heads = optax.apply_updates(before["heads"], updates)
            return {"heads": heads, "spectral": spectral, "opt_state": opt_state}, value, accuracy

        def update() -> tuple[dict[str, Any], tuple[jax.Array, ...]]:
            fakes = adversarial.to_8_bits(decode() * 2.0 - 1.0)
            after, *values = self._each(update_one, before, fakes, images * 2.0 - 1.0, key=key)
            return after, (*map(jnp.mean, values), self._learning_rate(state.step - first))

        after, values = jax.lax.cond(state.step >= first, update, lambda: (before, (jnp.zeros(()),) * 3))
        names = ("discriminator_loss", "discriminator_accuracy", "discriminator_learning_rate")
        return after, dict(zip(names, values, strict=True))
