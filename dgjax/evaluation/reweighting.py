"""Means under one density from samples of another, by their log-densities.

A sample x of the density q weighs p(x)/q(x) in a mean under p. The weights are known up to a factor
where one of the log-densities is, and are divided by their sum ("self-normalized").
"""

import numpy as np
from jaxtyping import ArrayLike

from dgjax.evaluation.intervals import Estimate, check_confidence

__all__ = ["effective_sample_size", "importance_weights", "weighted_mean"]


def importance_weights(log_weights: ArrayLike) -> np.ndarray:
    """Return weights that add up to 1.

    Args:
        log_weights: (n,) log p(x) - log q(x) in nats, up to one constant. -inf is a weight of 0.

    Returns:
        (n,) weights.

    Raises:
        ValueError: if there is no weight, one is NaN or +inf, or all are 0.
    """
    log_weights = np.asarray(log_weights, np.float64)
    if log_weights.ndim != 1 or not log_weights.size:
        raise ValueError(f"log_weights must be (n,) with n > 0, got {log_weights.shape}")
    if np.isnan(log_weights).any() or (log_weights == np.inf).any():
        raise ValueError("log_weights must be numbers below infinity; some are NaN or infinite")
    largest = log_weights.max()
    if largest == -np.inf:
        raise ValueError("all weights are 0: no sample has a density under the target")
    weights = np.exp(log_weights - largest)
    return weights / weights.sum()


def effective_sample_size(log_weights: ArrayLike) -> float:
    """Return how many equally weighted samples are worth the weighted ones.

    It is 1 / sum of the squares of the weights that add up to 1 (Kish 1965), between 1 and n.

    Args:
        log_weights: (n,) log p(x) - log q(x) in nats, up to one constant.

    Raises:
        ValueError: as `importance_weights`.
    """
    return float(1 / np.sum(importance_weights(log_weights) ** 2))


def weighted_mean(
    values: ArrayLike, log_weights: ArrayLike, *, confidence: float = 0.95
) -> Estimate:
    """Estimate a mean under p from samples of q, with an interval by the delta method.

    The interval is right where many samples have weight. With an effective sample size of a few it
    is too short: report that number too.

    Args:
        values: (n,) values at the samples of q.
        log_weights: (n,) log p(x) - log q(x) in nats, up to one constant.
        confidence: of the interval, in (0, 1).

    Returns:
        The mean and its interval.

    Raises:
        ValueError: if `values` are not (n,) and finite, `confidence` is outside (0, 1), or as
            `importance_weights`.
    """
    from scipy import stats  # importing it takes half a second, which `import dgjax` saves

    check_confidence(confidence)
    weights = importance_weights(log_weights)
    values = np.asarray(values, np.float64)
    if values.shape != weights.shape or not np.isfinite(values).all():
        raise ValueError(f"values must be {weights.shape} finite numbers, one for each weight")
    mean = float(weights @ values)
    error = np.sqrt(np.sum((weights * (values - mean)) ** 2))
    half = float(stats.norm.ppf(0.5 + confidence / 2) * error)
    return Estimate(mean, mean - half, mean + half)
