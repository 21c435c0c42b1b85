"""What a run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class TrainState(struct.PyTreeNode):
    """Everything that `train_step` reads and replaces.

    Attributes:
      step: int32 scalar, updates made so far.
      params: trained parameters, float32.
      ema_params: their exponential moving average, same structure.
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
    discriminator: Any = None
    frozen: Any = None

    @classmethod
    def create(cls, params: Any, opt_state: Any) -> "TrainState":
        """The state before the first step: the average starts at the parameters."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema_params=jax.tree.map(jnp.array, params),
            opt_state=opt_state,
        )


def update_ema(ema_params: Any, params: Any, decay: float) -> Any:
    """`decay * ema + (1 - decay) * params`, leaf by leaf."""
    return jax.tree.map(lambda ema, p: ema * decay + p * (1.0 - decay), ema_params, params)
