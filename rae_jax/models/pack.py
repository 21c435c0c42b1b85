"""A pack: many samples in one sequence. Where each token of it stands, and which others it sees.

A *sample* is a list of *splits*, runs of tokens that see each other in one way (Bagel): `causal` (text), `full` (an
image that is given) or `noise` (an image that is to be made, which no other split may see).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MODES = ("causal", "full", "noise")


class Places(NamedTuple):
    """Where tokens stand; integers `[..., N]`, in any order of the tokens.

    Attributes:
      sample: the number of the token's sample in the pack.
      order: the token's number in the pack.
      reach: up to which number it sees: its own, or the last one of its split.
      noise: the number of its split if that is of the mode `noise`, else -1.
      rotary: its rotary position.
    """

    sample: Any
    order: Any
    reach: Any
    noise: Any
    rotary: Any

    @classmethod
    def of_splits(
        cls, lengths: list[int], modes: list[str], samples: list[int], rotary: np.ndarray, start: int = 0
    ) -> "Places":
        """The places of all tokens in the order of the pack: of splits of these lengths and modes, in these samples.

        Raises:
          ValueError: an unknown mode.
        """
        if unknown := set(modes) - set(MODES):
            raise ValueError(f"attention modes {sorted(unknown)} are none of {MODES}")
        lengths = np.asarray(lengths, np.int32)
        order = start + np.arange(lengths.sum(), dtype=np.int32)
        last = np.repeat(start + np.cumsum(lengths, dtype=np.int32) - 1, lengths)
        causal = np.repeat([mode == "causal" for mode in modes], lengths)
        noise = np.repeat([i if mode == "noise" else -1 for i, mode in enumerate(modes)], lengths)
        return cls(
            sample=np.repeat(np.asarray(samples, np.int32), lengths),
            order=order,
            reach=np.where(causal, order, last).astype(np.int32),
            noise=noise.astype(np.int32),
            rotary=np.asarray(rotary, np.int32),
        )


def visible(queries: Places, keys: Places) -> Any:
    """Who sees whom: bool `[..., queries, keys]`.

    A token sees what is not after it, and all of its own split if that is no text; but in its own sample only, and
    nothing in a noise split other than its own.
    """

    def against(field: str) -> tuple[Any, Any]:
        return getattr(queries, field)[..., :, None], getattr(keys, field)[..., None, :]

    (sample, sample_k), (noise, noise_k) = against("sample"), against("noise")
    reached = keys.order[..., None, :] <= queries.reach[..., :, None]
    return (sample == sample_k) & reached & ((noise_k < 0) | (noise == noise_k))


class Run(NamedTuple):
    """One split in rows of a sample each.

    Attributes:
      mode: one of `MODES`.
      room: tokens that it has room for; of a given image that is not there but moves on what follows, none.
      count: `[B]`, how many there are in each row; 0: the split is not there, and nothing knows of it.
    """

    mode: str
    room: int
    count: jax.Array


def placed(runs: Sequence[Run]) -> list[Places]:
    """The places `[B, room]` of the tokens of each run, which follow each other; what is room alone is padding."""
    result, start, rotary = [], 0, jnp.zeros_like(runs[0].count)
    for number, run in enumerate(runs):
        index = jnp.arange(run.room, dtype=jnp.int32)
        there, causal = index < run.count[:, None], run.mode == "causal"
        order = jnp.broadcast_to(start + index, there.shape)
        noise = there if run.mode == "noise" else jnp.zeros_like(there)
        result.append(
            Places(
                sample=jnp.where(there, 0, -1),
                order=order,
                reach=order if causal else jnp.where(there, start + run.room - 1, order),
                noise=jnp.where(noise, number, -1),
                rotary=rotary[:, None] + (index if causal else jnp.zeros_like(index)),
            )
        )
        start += run.room
        rotary = rotary + (run.count if causal else 0 if run.mode == "noise" else (run.count > 0).astype(jnp.int32))
    return result
