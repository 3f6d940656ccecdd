r"""Fréchet distance between two sets of features, each modelled by a Gaussian.

    |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1^1/2 S_2 S_1^1/2)^1/2

(Dowson and Landau 1982) is the square of the 2-Wasserstein distance between N(m_1, S_1) and
N(m_2, S_2). With Inception features it is called FID. With other features it has another scale,
so name it after its features.

The estimate from samples is biased upwards, strongly if there are fewer samples n than features:
two sets of n samples of one distribution have a distance above 0. So compare distances at one n
only, and with the distance that other real samples have at this n. The intervals here are for the
expected distance at this n.
"""

import numpy as np
from jaxtyping import ArrayLike, Float

from dgjax.evaluation.intervals import Estimate, check_confidence

__all__ = ["frechet_distance", "frechet_gaussian", "frechet_interval"]


def frechet_gaussian(
    mean_1: ArrayLike, covariance_1: ArrayLike, mean_2: ArrayLike, covariance_2: ArrayLike
) -> float:
    """Return the squared Fréchet distance between two Gaussians.

    It is computed in float64 from a symmetric matrix root, so it is real and non-negative for
    covariances of any rank.

    Args:
        mean_1: (D,) mean of the first Gaussian.
        covariance_1: (D, D) covariance of the first Gaussian, positive semi-definite.
        mean_2: (D,) mean of the second Gaussian.
        covariance_2: (D, D) covariance of the second Gaussian, positive semi-definite.

    Raises:
        ValueError: if shapes disagree or a number is not finite.
    """
    arrays = [np.asarray(a, np.float64) for a in (mean_1, covariance_1, mean_2, covariance_2)]
    m1, s1, m2, s2 = arrays
    if m1.ndim != 1 or m1.shape != m2.shape or not s1.shape == s2.shape == (m1.size, m1.size):
        raise ValueError(
            f"means (D,) and covariances (D, D) have shapes {[a.shape for a in arrays]}"
        )
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("means and covariances must be finite; some are NaN or infinite")
    return _distance(m1 - m2, np.trace(s1) + np.trace(s2), _root_trace(s1, s2))


def frechet_distance(a: Float[ArrayLike, "n d"], b: Float[ArrayLike, "m d"]) -> float:
    """Return the squared Fréchet distance between two sets of features.

    Each set is modelled by the Gaussian with its mean and covariance. The distance depends on the
    number of samples: compare at equal n and m only.

    Args:
        a: (n, D) features.
        b: (m, D) features.

    Raises:
        ValueError: if shapes disagree, a set has fewer than two rows, or a number is not finite.
    """
    return _between(*_checked(a, b, 2))


def frechet_interval(
    a: Float[ArrayLike, "n d"],
    b: Float[ArrayLike, "m d"],
    *,
    groups: int = 10,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Return `frechet_distance` with an interval for its expectation at this number of samples.

    The interval is a jackknife's. Each set is split into `groups` at random, and the distance is
    computed without each group in turn. The jackknife variances of the two sets are added, and
    Student's interval has `groups` - 1 degrees of freedom.

    A bootstrap would be wrong here. It draws samples twice, which lowers the rank of the
    covariance, and its percentile interval can lie entirely above the distance. The jackknife
    never repeats a sample, and leaving a group out adds the same bias to all its terms. On
    Gaussian samples with 4 to 200 features, a 95 % interval contains the expectation 95 to 100 %
    of the time; it is most conservative for equal distributions.

    Args:
        a: (n, D) features.
        b: (m, D) features.
        groups: number of groups, at least 2; reduced to n or m if that is smaller.
        confidence: of the interval, in (0, 1).
        seed: of the split.

    Raises:
        ValueError: if shapes disagree, a set has fewer than three rows, a number is not finite,
            or an option is out of range.
    """
    from scipy import stats

    check_confidence(confidence)
    a, b = _checked(a, b, 3)
    groups = min(groups, len(a), len(b))
    if groups < 2:
        raise ValueError(f"the jackknife needs at least 2 groups, got {groups}")
    rng = np.random.default_rng(seed)
    splits = [np.array_split(rng.permutation(len(x)), groups) for x in (a, b)]
    without = [
        [_between(np.delete(a, rows, 0), b) for rows in splits[0]],
        [_between(a, np.delete(b, rows, 0)) for rows in splits[1]],
    ]
    variance = (groups - 1) * sum(np.var(found) for found in without)
    half = float(stats.t.ppf(0.5 + confidence / 2, groups - 1) * np.sqrt(variance))
    value = _between(a, b)
    return Estimate(value, max(value - half, 0.0), value + half)


def _between(a: np.ndarray, b: np.ndarray) -> float:
    means = a.mean(0), b.mean(0)
    # Factors x of the covariances: S = x^T x.
    x = (a - means[0]) / np.sqrt(len(a) - 1)
    y = (b - means[1]) / np.sqrt(len(b) - 1)
    if min(len(a), len(b)) < a.shape[1]:
        # S_1 S_2 has the eigenvalues of (x y^T)(x y^T)^T, which is smaller and needs no root.
        cross = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    else:
        cross = _root_trace(x.T @ x, y.T @ y)
    return _distance(means[0] - means[1], (x**2).sum() + (y**2).sum(), cross)


def _root_trace(s1: np.ndarray, s2: np.ndarray) -> float:
    values, vectors = np.linalg.eigh(s1)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ s2 @ root), 0)).sum())


def _distance(offset: np.ndarray, traces: float, cross: float) -> float:
    return float(max(offset @ offset + traces - 2 * cross, 0.0))  # rounding may leave -1e-15


def _checked(a: ArrayLike, b: ArrayLike, least: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (n, D) and (m, D), got {a.shape} and {b.shape}")
    if min(len(a), len(b)) < least:
        raise ValueError(f"at least {least} samples a set are needed, got {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features must be finite; some are NaN or infinite")
    return a, b
