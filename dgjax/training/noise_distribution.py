"""Distributions of the training noise level w = sigma/alpha.

A noise distribution is given by its quantile function, from u in [0, 1) to w, and by the density of
log w. `low_discrepancy_draw` draws the u of a whole batch: each is uniform, and together they leave
no gaps. The loss of a batch then depends little on which noise levels were drawn (VDM, arXiv
2107.00630, appendix I.1).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from dgjax.typing import Key

__all__ = [
    "NOISE_DISTRIBUTIONS",
    "LogNormal",
    "NoiseDistribution",
    "UniformLogSNR",
    "low_discrepancy_draw",
]

SMALLEST, LARGEST = 1e-30, 1e30  # noise levels, of which float32 holds the reciprocals
LEAST_STD, LEAST_INSIDE = 1e-6, 1e-6


class NoiseDistribution(Protocol):
    """A distribution of w on the range from `low` to `high`."""

    @property
    def low(self) -> float:
        """Smallest noise level w."""
        ...

    @property
    def high(self) -> float:
        """Largest noise level w."""
        ...

    def quantile(self, u: Array) -> Array:
        """Return the noise level w below which a share u in [0, 1) of all draws fall."""
        ...

    def density(self, w: Array) -> Array:
        """Return the probability density of log w, for w between `low` and `high`."""
        ...


def low_discrepancy_draw(key: Key, n: int) -> Float[Array, " n"]:
    """Draw n numbers in [0, 1), evenly spaced with one common random shift.

    Each number by itself is uniform on [0, 1) (VDM, arXiv 2107.00630, appendix I.1).

    Args:
        key: random key of the shift.
        n: how many numbers to draw.

    Returns:
        The numbers (n,).
    """
    return (jnp.arange(n) / n + jax.random.uniform(key)) % 1


def _check_range(low: float, high: float) -> None:
    if not SMALLEST <= low < high <= LARGEST:
        raise ValueError(
            "noise_distribution: low must be positive and high larger than low, in "
            f"[{SMALLEST:g}, {LARGEST:g}], got low {low} and high {high}"
        )


@dataclass(frozen=True)
class UniformLogSNR:
    """Uniform distribution of log w, and so of the log-SNR -2 log w.

    Attributes:
        low: smallest w.
        high: largest w.

    Raises:
        ValueError: unless 1e-30 <= low < high <= 1e30.
    """

    low: float = 0.01
    high: float = 80.0

    def __post_init__(self):
        _check_range(self.low, self.high)

    def quantile(self, u: Array) -> Array:
        """Return w at the share u in [0, 1] of the range of log w."""
        low, high = jnp.log(self.low), jnp.log(self.high)
        return jnp.exp(low + (high - low) * u)

    def density(self, w: Array) -> Array:
        """Return the density of log w: 1/log(high/low) everywhere."""
        return jnp.full_like(w, 1 / (jnp.log(self.high) - jnp.log(self.low)))


@dataclass(frozen=True)
class LogNormal:
    """Truncated normal distribution of log w (EDM, arXiv 2206.00364, table 1) with a uniform share.

    Images take shape at w from 0.05 to 2, where the normal part puts most draws. But a log-density
    is an integral over all of log w, and a network that never saw w = 80 spoils the first steps of
    every sample. So a share `uniform` of the draws is uniform in log w.

    Attributes:
        mean: of log w, before truncation.
        std: standard deviation of log w, before truncation.
        low: smallest w.
        high: largest w.
        uniform: share of draws that are uniform in log w, in [0, 1).

    Raises:
        ValueError: if a value is out of range.
    """

    mean: float = -1.2
    std: float = 1.4
    low: float = 0.01
    high: float = 80.0
    uniform: float = 0.2

    def __post_init__(self):
        _check_range(self.low, self.high)
        if not (self.std > 0 and 0 <= self.uniform < 1):
            raise ValueError(
                "noise_distribution: std must be positive and uniform in [0, 1), got std "
                f"{self.std} and uniform {self.uniform}"
            )
        normal = NormalDist(self.mean, self.std)
        inside = normal.cdf(math.log(self.high)) - normal.cdf(math.log(self.low))
        # float32 has no draws of a normal distribution that lies elsewhere, or in one point.
        if self.std < LEAST_STD or inside < LEAST_INSIDE:
            raise ValueError(
                f"noise_distribution: with mean {self.mean:g} and std {self.std:g} of log w, a "
                f"share of {inside:.3g} of the normal part lies between low and high; move mean "
                f"into [log low, log high] = [{math.log(self.low):.3g}, {math.log(self.high):.3g}]"
                f" and take std from {LEAST_STD:g} to a few times its length"
            )

    def quantile(self, u: Array) -> Array:
        """Map u in [0, 1) to w: u < `uniform` to the uniform part, other u to the normal part."""
        even = UniformLogSNR(self.low, self.high).quantile(u / max(self.uniform, 1e-6))
        v = (u - self.uniform) / (1 - self.uniform)
        low, high = ndtr(self._standardize(self.low)), ndtr(self._standardize(self.high))
        standard = ndtri(jnp.clip(low + (high - low) * v, low, high))
        bulk = jnp.exp(self.mean + self.std * standard)
        return jnp.clip(jnp.where(u < self.uniform, even, bulk), self.low, self.high)

    def density(self, w: Array) -> Array:
        """Return the density of log w: both parts, weighted by their shares."""
        inside = ndtr(self._standardize(self.high)) - ndtr(self._standardize(self.low))
        bulk = norm.pdf(self._standardize(w)) / (self.std * inside)
        even = UniformLogSNR(self.low, self.high).density(w)
        return self.uniform * even + (1 - self.uniform) * bulk

    def _standardize(self, w: Array | float) -> Array:
        return (jnp.log(w) - self.mean) / self.std


NOISE_DISTRIBUTIONS = {"lognormal": LogNormal, "uniform_logsnr": UniformLogSNR}
