r"""Normality of the statistic h behind density guidance, which makes q a quantile.

    h_t(x) = sigma^2 (Lap log p_t(x) + |grad log p_t(x)|^2)/sqrt(2D)

(Density Guidance, arXiv 2502.05807, section 4) has mean 0 under p_t for every p_t, so another mean
shows that the score does not fit the samples. It tends to N(0, 1) if D is large and the noise is
large compared with the data. For Gaussian data with variances lambda_i and alpha = 1, its standard
deviation is the root mean square of sigma^2/(sigma^2 + lambda_i). The parameter q of density
guidance is a true quantile only as far as h is standard normal.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgjax.evaluation.intervals import Estimate, check_confidence, mean_interval
from dgjax.model.divergence import Divergence
from dgjax.model.field import Field
from dgjax.model.local import evaluate
from dgjax.typing import Cond, Key, Sample

__all__ = ["Normality", "h_statistic", "normality"]


def h_statistic(
    model: Field,
    t: ArrayLike,
    x: Sample,
    *,
    divergence: Divergence,
    key: Key,
    cond: Cond = None,
) -> Float[Array, " p"]:
    """Estimate the statistic h, whose quantile the dial q asks for.

    h = sigma^2 (Lap log p + |s|^2)/sqrt(2 D), without bias, once for each estimate that
    `divergence` makes.

    Density Guidance (arXiv 2502.05807), section 4.

    Args:
        model: the field.
        t: a time of its path.
        x: one sample of p_t, of any shape: alpha x_0 + sigma eps for data x_0.
        divergence: trace estimator. One Rademacher probe adds about as much variance as h has
            itself; `normality` subtracts it.
        key: for the probes.
        cond: condition of the model, if any.

    Returns:
        (p,) independent estimates.
    """
    local = evaluate(model, t, x, divergence=divergence, key=key, cond=cond)
    assert local.hvp is not None
    laplacians = divergence(local.hvp, x, key)
    return local.sigma**2 * (laplacians + jnp.sum(local.score**2)) / jnp.sqrt(2.0 * x.size)


class Normality(NamedTuple):
    """Moments of h at one noise level, and a test of its normality.

    The intervals of the higher moments are percentile intervals of a bootstrap over the samples.
    They are NaN if there are too few probes or samples.

    Attributes:
        mean: mean, with Student's interval.
        standard_deviation: standard deviation of h, without the noise of the probes.
        skewness: skewness of h, without the noise of the probes.
        excess_kurtosis: excess kurtosis of h, without the noise of the probes.
        probe_deviation: standard deviation of the probe noise in each sample's mean estimate.
        statistic: Shapiro-Wilk statistic of the samples' mean estimates, which contain the noise
            of the probes.
        p_value: p-value of that test. A small one says that h is not normal; a large one, with
            few samples, says little.
        samples: number of samples.
        probes: number of estimates per sample.
    """

    mean: Estimate
    standard_deviation: Estimate
    skewness: Estimate
    excess_kurtosis: Estimate
    probe_deviation: float
    statistic: float
    p_value: float
    samples: int
    probes: int


def normality(
    estimates: Float[ArrayLike, "n p"],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Normality:
    """Compute moments of h from independent estimates, without the noise of the probes.

    The expected product of j different estimates of one h is its j-th power, so the j-th moment of
    h itself needs j probes. A single column (p = 1) is taken as exact.

    Args:
        estimates: (n, p): p estimates, from `h_statistic`, for each of n samples.
        confidence: of the intervals, in (0, 1).
        resamples: number of resamples of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: if `estimates` is not (n, p) with n at least 3, or not finite, or `confidence`
            is outside (0, 1).
    """
    from scipy import stats

    check_confidence(confidence)
    h = np.asarray(estimates, np.float64)
    if h.ndim != 2 or h.shape[0] < 3 or h.shape[1] < 1:
        raise ValueError(f"estimates must be (samples, probes) with 3 samples, got {h.shape}")
    if not np.isfinite(h).all():
        raise ValueError("estimates must be finite; some are NaN or infinite")
    count, probes = h.shape
    means = h.mean(1)
    powers = _powers(h - means.mean())
    rows = np.random.default_rng(seed).integers(0, count, (resamples, count))
    drawn = np.stack([_shape(powers[i].mean(0), count) for i in rows])
    tails = (0.5 - confidence / 2, 0.5 + confidence / 2)
    deviation, skewness, kurtosis = (
        Estimate(float(value), *_ends(column, tails))
        for value, column in zip(_shape(powers.mean(0), count), drawn.T, strict=True)
    )
    noise = h.var(1, ddof=1).mean() / probes if probes > 1 else 0.0
    test = stats.shapiro(means)
    return Normality(
        mean=mean_interval(means, confidence=confidence),
        standard_deviation=deviation,
        skewness=skewness,
        excess_kurtosis=kurtosis,
        probe_deviation=float(np.sqrt(noise)),
        statistic=float(test.statistic),
        p_value=float(test.pvalue),
        samples=count,
        probes=probes,
    )


def _ends(drawn: np.ndarray, tails: tuple[float, float]) -> tuple[float, float]:
    # A resample without variance has no higher moments. A few of them may be ignored.
    known = drawn[np.isfinite(drawn)]
    if len(known) < 0.99 * len(drawn):
        return np.nan, np.nan
    low, high = np.quantile(known, tails)
    return float(low), float(high)


def _powers(h: np.ndarray) -> np.ndarray:
    """Estimate the powers 1 to 4 of h, (n, 4), from (n, p) estimates of h, without bias.

    Power j is the mean product of j different columns, by the recursion of elementary symmetric
    polynomials. It is NaN if there are fewer than j columns.
    """
    count, probes = h.shape
    if probes == 1:
        return h ** np.arange(1, 5)
    sums = np.zeros((5, count))
    sums[0] = 1
    for column in h.T:
        sums[1:] = sums[1:] + column * sums[:-1]
    choices = np.array([math.comb(probes, j) or np.nan for j in range(1, 5)])
    return (sums[1:] / choices[:, None]).T


def _shape(powers: np.ndarray, count: int) -> np.ndarray:
    """Return standard deviation, skewness and excess kurtosis from the mean powers 1 to 4."""
    m1, m2, m3, m4 = powers
    variance = m2 - m1**2
    if not variance > 0:
        return np.array([0.0, np.nan, np.nan])
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    unbiased = variance * count / (count - 1)
    return np.array([np.sqrt(unbiased), third / variance**1.5, fourth / variance**2 - 3])
