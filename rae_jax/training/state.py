"""What a run carries from step to step."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from ml_collections import ConfigDict


class TrainState(struct.PyTreeNode):
    """Everything that `train_step` reads and replaces.

    Attributes:
      step: int32 scalar, updates made so far.
      params: trained parameters, float32.
      ema_params: their exponential moving average, same structure: the one that is used.
      more_ema: further averages by their decay, each of the same structure. None if there are none.
      opt_state: the optimizer's state.
      discriminator: a second network that is trained against the first, with all that its training carries: heads,
        power iteration and optimizer (`objectives/image_loss.py`). None in an objective without one.
      frozen: parameters that the step reads and never changes, by component name. They ride in the state so that the
        step sees them as arguments, and are left out of checkpoints.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    more_ema: Any = None
    discriminator: Any = None
    frozen: Any = None

    @classmethod
    def create(cls, params: Any, opt_state: Any, decays: Sequence[float] = (0.0,)) -> "TrainState":
        """The state before the first step, with an average for each of `decays`: they start at the parameters."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema_params=jax.tree.map(jnp.array, params),
            opt_state=opt_state,
            more_ema={str(decay): jax.tree.map(jnp.array, params) for decay in decays[1:]} or None,
        )

    def starting_at(self, params: Any) -> "TrainState":
        """The state before the first step with other parameters."""
        more = {decay: jax.tree.map(jnp.array, params) for decay in self.more_ema or ()} or None
        return self.replace(params=params, ema_params=jax.tree.map(jnp.array, params), more_ema=more)

    def averaged(self, decays: Sequence[float]) -> "TrainState":
        """The state whose averages, with the same `decays` as from the start, have seen its parameters."""
        averages = update_ema(self.ema_params, self.params, decays[0])
        more = {str(decay): update_ema(self.more_ema[str(decay)], self.params, decay) for decay in decays[1:]} or None
        return self.replace(ema_params=averages, more_ema=more)


def ema_decays(train: ConfigDict) -> tuple[float, ...]:
    """The decays of a stage's averages, by its `train` section: the one that is used first.

    Raises:
      ValueError: one is there twice, or is none.
    """
    decays = (train.ema_decay, *train.more_ema_decays)
    if len(set(decays)) < len(decays) or not all(0 <= decay < 1 for decay in decays):
        raise ValueError(
            f"train.ema_decay={train.ema_decay} and train.more_ema_decays={tuple(train.more_ema_decays)} must be "
            "different numbers of at least 0 and less than 1"
        )
    return decays


def update_ema(ema_params: Any, params: Any, decay: float) -> Any:
    """`decay * ema + (1 - decay) * params`, leaf by leaf."""
    return jax.tree.map(lambda ema, p: ema * decay + p * (1.0 - decay), ema_params, params)
