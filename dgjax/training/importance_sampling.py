"""Samplers of noise levels: directly from the noise distribution, or by importance sampling.

The training loss is an expectation over the noise distribution. `ImportanceSampling` draws more
often where the loss is large, and gives each draw a weight that corrects for it: the expected
gradient is unchanged, its variance is smaller (improved DDPM, arXiv 2102.09672, section 3.3).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import ops
from jaxtyping import Array, Float, PyTree

from dgjax.training.noise_distribution import NoiseDistribution

__all__ = [
    "DirectSampling",
    "ImportanceSampling",
    "LossHistogram",
    "NoiseSampler",
    "WeightedDraw",
]

MOST_BINS = 10**4


class WeightedDraw(NamedTuple):
    """Noise levels and their importance weights.

    Attributes:
        w: noise levels, (B,).
        importance: density of the noise distribution over the density that w was drawn from, (B,).
            A mean over draws weighted by it estimates the mean over the noise distribution.
    """

    w: Float[Array, " b"]
    importance: Float[Array, " b"]


class NoiseSampler(Protocol):
    """Draws noise levels and learns from the losses there; its state is a pytree of arrays."""

    @property
    def distribution(self) -> NoiseDistribution:
        """The noise distribution, over which the training loss is an expectation."""
        ...

    def init(self) -> PyTree[Array]:
        """Return the state before the first step."""
        ...

    def draw(self, state: PyTree[Array], u: Array) -> WeightedDraw:
        """Return noise levels with importance weights, from u (B,), each uniform in [0, 1)."""
        ...

    def update(self, state: PyTree[Array], w: Array, losses: Array) -> PyTree[Array]:
        """Return the state after the losses (B,) at w (B,), without importance weights."""
        ...


@dataclass(frozen=True)
class DirectSampling:
    """Draw from the noise distribution itself: every importance weight is 1.

    Attributes:
        distribution: the noise distribution.
    """

    distribution: NoiseDistribution

    def init(self) -> tuple[()]:
        """Return the empty state."""
        return ()

    def draw(self, state: tuple[()], u: Array) -> WeightedDraw:
        """Return the noise distribution's quantiles at u (B,), with weights 1."""
        return WeightedDraw(self.distribution.quantile(u), jnp.ones_like(u))

    def update(self, state: tuple[()], w: Array, losses: Array) -> tuple[()]:
        """Return the empty state: nothing is learnt."""
        return state


class LossHistogram(NamedTuple):
    """Per bin of log w: running mean of the squared loss, and how many losses were seen."""

    mean_square: Float[Array, " bins"]
    seen: Float[Array, " bins"]


@dataclass(frozen=True)
class ImportanceSampling:
    """Draw noise levels in proportion to the noise distribution times the size of the loss.

    log w is divided into bins, and each bin is drawn in proportion to its density times its root
    mean square loss. Of all proposals this one has the least variance of the weighted loss. A share
    `floor` of the draws follows the noise distribution, so no bin is starved and importance weights
    stay below about 1/floor. All draws do until every bin has seen `patience` losses.

    Attributes:
        distribution: the noise distribution.
        bins: number of bins, evenly spaced in log w; at least 2.
        memory: about how many of the latest losses of a bin its mean square averages; at least 1.
        floor: share of draws from the noise distribution itself, in (0, 1].
        patience: number of losses needed in every bin before importance sampling begins.

    Raises:
        ValueError: if a value is out of range.
    """

    distribution: NoiseDistribution
    bins: int = 48
    memory: float = 500.0
    floor: float = 0.2
    patience: float = 10.0

    def __post_init__(self):
        if self.bins > MOST_BINS:
            raise ValueError(f"importance_sampling: bins must be at most {MOST_BINS:,}")
        if not (self.bins >= 2 and self.memory >= 1 and 0 < self.floor <= 1 and self.patience >= 0):
            raise ValueError(
                "importance_sampling: bins must be at least 2, memory at least 1, floor in (0, 1] "
                f"and patience at least 0, got {self.bins}, {self.memory}, {self.floor} and "
                f"{self.patience}"
            )

    def init(self) -> LossHistogram:
        """Return a histogram that has seen no losses."""
        return LossHistogram(jnp.ones(self.bins), jnp.zeros(self.bins))

    def draw(self, state: LossHistogram, u: Array) -> WeightedDraw:
        """Return noise levels with importance weights, from u (B,), each uniform in [0, 1).

        Within a bin the draws are uniform in log w.
        """
        edges = self._edges()
        probabilities = self.probabilities(state)
        cumulative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(probabilities)])
        log_w = jnp.interp(u, cumulative / cumulative[-1], edges)
        width = edges[1] - edges[0]
        proposal = probabilities[self._bin(log_w)] / width
        w = jnp.exp(log_w)
        return WeightedDraw(w, self.distribution.density(w) / proposal)

    def update(self, state: LossHistogram, w: Array, losses: Array) -> LossHistogram:
        """Return the histogram after the losses (B,) at w (B,), without importance weights."""
        index = self._bin(jnp.log(w))
        count = ops.segment_sum(jnp.ones_like(losses), index, self.bins)
        total = ops.segment_sum(losses**2, index, self.bins)
        # The plain mean of all losses at first; later a moving average over about `memory` losses.
        rate = count / jnp.minimum(jnp.maximum(state.seen + count, 1), self.memory)
        mean = total / jnp.maximum(count, 1)
        moved = state.mean_square + jnp.minimum(rate, 1) * (mean - state.mean_square)
        return LossHistogram(moved, state.seen + count)

    def probabilities(self, state: LossHistogram) -> Float[Array, " bins"]:
        """Return the probability with which each bin is drawn; they sum to 1."""
        edges = self._edges()
        centres = jnp.exp((edges[1:] + edges[:-1]) / 2)
        plain = self.distribution.density(centres)
        plain = plain / jnp.sum(plain)
        by_loss = plain * jnp.sqrt(state.mean_square)
        by_loss = by_loss / jnp.maximum(jnp.sum(by_loss), jnp.finfo(by_loss.dtype).tiny)
        mixed = self.floor * plain + (1 - self.floor) * by_loss
        return jnp.where(jnp.all(state.seen >= self.patience), mixed, plain)

    def _edges(self) -> Float[Array, " edges"]:
        low, high = self.distribution.low, self.distribution.high
        return jnp.linspace(jnp.log(low), jnp.log(high), self.bins + 1)

    def _bin(self, log_w: Array) -> Array:
        edges = self._edges()
        index = jnp.floor((log_w - edges[0]) / (edges[1] - edges[0]))
        return jnp.clip(index, 0, self.bins - 1).astype(jnp.int32)
