"""Figures with an interval of confidence each: a mean, and a share."""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike

__all__ = ["Estimate", "check_confidence", "mean_interval", "share_interval"]


class Estimate(NamedTuple):
    """A figure and the ends of its interval of confidence."""

    value: float
    low: float
    high: float


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Mean of `values` (n,) with Student's interval; the ends are NaN for a single value.

    Raises:
        ValueError: if there is no value, or `confidence` is outside (0, 1).
    """
    from scipy import stats  # half a second that `import dgjax` need not spend

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
    """hits/count with Wilson's interval, which stays inside [0, 1].

    Raises:
        ValueError: if `count` is not positive, or `confidence` is outside (0, 1).
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
