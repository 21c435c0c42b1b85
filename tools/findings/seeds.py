"""Numbers of several seeds: how they are shown, and what may be said of two of them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

ERRORS = 2  # standard errors of a difference that chance is left


def shown(values: Sequence[float] | np.ndarray, form: str = ".3f", unit: str = "") -> str:
    """Mean and deviation, as in "0.581 ± 0.003"; a value that is not finite is that of a run that diverged."""
    values = np.asarray(values, float)
    finite = values[np.isfinite(values)]
    lost = f"{len(values) - len(finite)} of {len(values)} diverged"
    if not len(finite):
        return "diverged"
    deviation = f" ± {finite.std(ddof=1):{form}}" if len(finite) > 1 else ""
    return f"{finite.mean():{form}}{deviation}{unit}" + (f" ({lost})" if len(finite) < len(values) else "")


def verdict(
    values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray, better: Literal["lower", "higher"]
) -> str:
    """What `values` are beside `others`, each of two seeds or more: "better", "worse", or no different.

    Means are different if more than two standard errors of their difference apart, `sqrt(s^2 / n + s'^2 / n')` with the
    deviations s and s' of the seeds. For two cells of three seeds that are the same chance alone gives that in one
    comparison of nine (Student's t, 4 degrees of freedom). A value that is not finite is that of a run that diverged,
    which is worse than any.

    Raises:
      ValueError: of one seed nothing can be said.
    """
    values, others = np.asarray(values, float), np.asarray(others, float)
    if min(len(values), len(others)) < 2:
        raise ValueError("one seed has no deviation: compare two or more of each")
    lost = [int((~np.isfinite(x)).sum()) for x in (values, others)]
    if any(lost):
        counts = f"{lost[0]} of {len(values)} runs diverged, against {lost[1]} of {len(others)}"
        shares = [count / len(x) for count, x in zip(lost, (values, others), strict=True)]
        word = "not compared" if shares[0] == shares[1] else "worse" if shares[0] > shares[1] else "better"
        return f"{word} ({counts})"
    error = np.sqrt(values.var(ddof=1) / len(values) + others.var(ddof=1) / len(others))
    difference = values.mean() - others.mean()
    if abs(difference) <= ERRORS * error:
        return "no different (within two standard errors)"
    return "better" if (difference < 0) == (better == "lower") else "worse"


def changed(values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> str:
    """What `verdict` says, as "higher" or "lower": of a number like diversity, which noise has too, no praise."""
    said = verdict(values, others, "higher")
    return {"better": "higher", "worse": "lower"}.get(said, said)
