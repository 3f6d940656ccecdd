"""Confidence intervals of a mean and of a proportion."""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike

__all__ = ["Estimate", "check_confidence", "mean_interval", "share_interval"]


class Estimate(NamedTuple):
    """An estimate with its confidence interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Return the mean of `values` with Student's t interval.

    Args:
        values: (n,) independent values.
        confidence: of the interval, in (0, 1).

    Returns:
        The mean and its interval; the ends are NaN if n = 1.

    Raises:
        ValueError: if there is no value, or `confidence` is outside (0, 1).
    """
    from scipy import stats  # importing it takes half a second, which `import dgjax` saves

    check_confidence(confidence)
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"values must be (n,) with n > 0, got {values.shape}")
    mean, count = float(values.mean()), values.size
    if count < 2:
        return Estimate(mean, np.nan, np.nan)
    error = values.std(ddof=1) / np.sqrt(count)
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1) * error)
    return Estimate(mean, mean - half, mean + half)


def share_interval(hits: int, count: int, *, confidence: float = 0.95) -> Estimate:
    """Return the proportion hits/count with Wilson's score interval, which stays inside [0, 1].

    Args:
        hits: number of successes.
        count: number of trials.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: if `count` is not positive, `hits` is not in 0..count, or `confidence` is
            outside (0, 1).
    """
    from scipy import stats

    check_confidence(confidence)
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"a share needs 0 <= hits <= count and count > 0, got {hits} of {count}")
    interval = stats.binomtest(hits, count).proportion_ci(confidence, "wilson")
    return Estimate(hits / count, float(interval.low), float(interval.high))


def check_confidence(confidence: float) -> None:
    """Raise a ValueError unless `confidence` lies in (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
