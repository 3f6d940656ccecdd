"""Gaussian mixture with exact log-density and derivatives in float64, by NumPy and SciPy."""

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

__all__ = ["BATCH", "COUNT", "SIZE", "Mixture", "make_mixture", "rounded"]

# Dimension, number of components with full covariances, samples in a batch: small to compile.
SIZE, COUNT, BATCH = 64, 3, 8


class Mixture(NamedTuple):
    """A Gaussian mixture in float64, whose parameters float32 represents exactly.

    Attributes:
        weights: (COUNT,) weights.
        means: (COUNT, SIZE) means.
        covariances: (COUNT, SIZE, SIZE) covariances.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def noisy(self, alpha: float, sigma: float) -> "Mixture":
        """Return the mixture of alpha x + sigma eps."""
        noise = sigma**2 * np.eye(SIZE)
        return Mixture(self.weights, alpha * self.means, alpha**2 * self.covariances + noise)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw (count, SIZE) samples that float32 represents exactly."""
        k = rng.choice(COUNT, size=count, p=self.weights)
        root = np.linalg.cholesky(self.covariances)[k]
        x = self.means[k] + np.einsum("nij,nj->ni", root, rng.normal(size=(count, SIZE)))
        return rounded(x)

    def log_terms(self, x: np.ndarray) -> np.ndarray:
        """Return log(weight times density) of each component at x (n, SIZE): (n, COUNT)."""
        parts = zip(self.means, self.covariances, strict=True)
        terms = [multivariate_normal(m, c).logpdf(x) for m, c in parts]
        return np.stack(terms, -1) + np.log(self.weights)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Return log-densities (n,) at x (n, SIZE), in nats."""
        return logsumexp(self.log_terms(x), axis=-1)

    def derivatives(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (n, SIZE) and Hessians (n, SIZE, SIZE) of the log-density at x."""
        terms = self.log_terms(x)
        weights = np.exp(terms - logsumexp(terms, axis=-1, keepdims=True))
        precisions = np.linalg.inv(self.covariances)
        scores = np.einsum("kij,nkj->nki", precisions, self.means - x[:, None])
        score = np.einsum("nk,nki->ni", weights, scores)
        apart = scores - score[:, None]
        spread = np.einsum("nki,nkj->nij", weights[..., None] * apart, apart)
        return score, spread - np.einsum("nk,kij->nij", weights, precisions)


def rounded(a: np.ndarray) -> np.ndarray:
    """Round `a` to float32 and return it in float64."""
    return np.asarray(a, np.float32).astype(np.float64)


def make_mixture(same: bool = False) -> Mixture:
    """Make a mixture with standard deviations from 0.3 to 1.5 in random directions.

    Args:
        same: whether all components are equal, so that the mixture is one Gaussian.
    """
    rng = np.random.default_rng(1)
    means = rng.normal(size=(COUNT, SIZE))
    rotations = np.linalg.qr(rng.normal(size=(COUNT, SIZE, SIZE)))[0]
    scales = rng.permuted(np.tile(np.geomspace(0.3, 1.5, SIZE), (COUNT, 1)), axis=1)
    covariances = np.einsum("kij,kj,klj->kil", rotations, scales**2, rotations)
    covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    if same:
        means, covariances = (np.repeat(a[:1], COUNT, 0) for a in (means, covariances))
    return Mixture(np.array([0.5, 0.25, 0.25]), rounded(means), rounded(covariances))
