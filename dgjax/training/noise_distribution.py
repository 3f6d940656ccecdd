"""Noise levels to train at: distributions of w = sigma/alpha, drawn with low discrepancy.

A distribution is its quantile function, u in (0, 1) to w, and its density. The u of one batch
are a lattice with a common random shift: each is uniform, and together they leave no gaps, so the
loss of a batch scarcely depends on which levels it happened to draw (Kingma et al. 2021,
appendix I.1).
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from dgjax.typing import Key

__all__ = ["LEVELS", "Levels", "LogNormal", "UniformLogSNR", "lattice"]


class Levels(Protocol):
    """A distribution of log w between log `low` and log `high`."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...

    def __call__(self, u: Array) -> Array:
        """The quantile function: u in [0, 1) to w."""
        ...

    def density(self, w: Array) -> Array:
        """Of log w, per unit, for w in the range."""
        ...


def lattice(key: Key, n: int) -> Float[Array, " n"]:
    """n evenly spaced points on the circle [0, 1) with one common random shift."""
    return (jnp.arange(n) / n + jax.random.uniform(key)) % 1


def _check(low: float, high: float) -> None:
    if not 0 < low < high:
        raise ValueError(f"levels: 0 < low < high is needed, got low {low} and high {high}")


@dataclass(frozen=True)
class UniformLogSNR:
    """log w, and so the log-SNR, uniform between log `low` and log `high`."""

    low: float = 0.01
    high: float = 80.0

    def __post_init__(self):
        _check(self.low, self.high)

    def __call__(self, u: Array) -> Array:
        """The quantile function: u in [0, 1] to w."""
        low, high = jnp.log(self.low), jnp.log(self.high)
        return jnp.exp(low + (high - low) * u)

    def density(self, w: Array) -> Array:
        """Of log w: the same everywhere."""
        return jnp.full_like(w, 1 / (jnp.log(self.high) - jnp.log(self.low)))


@dataclass(frozen=True)
class LogNormal:
    """log w normal (Karras et al. 2022) and cut to [`low`, `high`], mixed with a uniform share.

    The bulk sits where images take shape, w from 0.05 to 2. Log-densities add up over all of
    log w alike, and a network never shown w = 80 spoils the first steps of every sample: a
    `uniform` share of the levels, spread evenly in log w, sees to both ends.
    """

    mean: float = -1.2
    std: float = 1.4
    low: float = 0.01
    high: float = 80.0
    uniform: float = 0.2

    def __post_init__(self):
        _check(self.low, self.high)
        if not (self.std > 0 and 0 <= self.uniform < 1):
            raise ValueError(
                f"levels: std must be positive and uniform in [0, 1), "
                f"got {self.std} and {self.uniform}"
            )

    def __call__(self, u: Array) -> Array:
        """From u in [0, 1) to w; each share has its own quantile function on its piece of u."""
        even = UniformLogSNR(self.low, self.high)(u / max(self.uniform, 1e-6))
        v = (u - self.uniform) / (1 - self.uniform)
        low, high = ndtr(self._standard(self.low)), ndtr(self._standard(self.high))
        inside = ndtri(jnp.clip(low + (high - low) * v, low, high))
        bulk = jnp.exp(self.mean + self.std * inside)
        return jnp.clip(jnp.where(u < self.uniform, even, bulk), self.low, self.high)

    def density(self, w: Array) -> Array:
        """Of log w, of both shares together."""
        inside = ndtr(self._standard(self.high)) - ndtr(self._standard(self.low))
        bulk = norm.pdf(self._standard(w)) / (self.std * inside)
        even = UniformLogSNR(self.low, self.high).density(w)
        return self.uniform * even + (1 - self.uniform) * bulk

    def _standard(self, w: Array | float) -> Array:
        return (jnp.log(w) - self.mean) / self.std


LEVELS = {"lognormal": LogNormal, "uniform_logsnr": UniformLogSNR}
