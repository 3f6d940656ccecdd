"""How often each noise level is drawn: as its distribution says, or where the loss is large.

The objective is an average over the distribution either way. `Adaptive` draws from another one,
which it learns from the losses, and says by how much each draw then counts: the expectation of
the gradient stays, its variance falls (Nichol and Dhariwal 2021, arXiv 2102.09672, section 3.3).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import ops
from jaxtyping import Array, Float, PyTree

from dgjax.training.noise_distribution import Levels

__all__ = ["Adaptation", "Adaptive", "Draw", "Fixed", "Histogram"]


class Draw(NamedTuple):
    """Noise levels w (B,), and by how much each counts, (B,).

    Weighed by `importance`, averages over the levels drawn are averages over the distribution.
    """

    w: Array
    importance: Array


class Adaptation(Protocol):
    """Draws noise levels of a distribution, and learns from the losses there."""

    @property
    def levels(self) -> Levels: ...

    def init(self) -> PyTree[Array]:
        """What is known before the first step."""
        ...

    def draw(self, state: PyTree[Array], u: Array) -> Draw:
        """Levels from u (B,), each uniform in [0, 1)."""
        ...

    def update(self, state: PyTree[Array], w: Array, losses: Array) -> PyTree[Array]:
        """What is known after the losses (B,) at w (B,), before they are weighed by importance."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Draws what the distribution says, always."""

    levels: Levels

    def init(self) -> tuple[()]:
        return ()

    def draw(self, state: tuple[()], u: Array) -> Draw:
        return Draw(self.levels(u), jnp.ones_like(u))

    def update(self, state: tuple[()], w: Array, losses: Array) -> tuple[()]:
        return state


class Histogram(NamedTuple):
    """Of each bin of log w the running mean square of the loss, and how much it rests on."""

    mean_square: Float[Array, " bins"]
    seen: Float[Array, " bins"]


@dataclass(frozen=True)
class Adaptive:
    """Draws a bin of log w in proportion to density x root mean square of the loss there.

    That is the choice of least variance for a sum of losses. A `floor` of the draws follows the
    distribution itself: no bin starves, and no importance exceeds 1/floor by much. Until every
    bin has been seen `patience` times, all draws do.

    Attributes:
        levels: the distribution.
        bins: evenly spaced in log w.
        memory: number of a bin's latest losses that its mean square rests on, roughly.
        floor: share of draws from the distribution itself, in (0, 1].
        patience: losses in every bin before anything is adapted.
    """

    levels: Levels
    bins: int = 48
    memory: float = 500.0
    floor: float = 0.2
    patience: float = 10.0

    def __post_init__(self):
        if not (self.bins >= 2 and self.memory >= 1 and 0 < self.floor <= 1 and self.patience >= 0):
            raise ValueError(
                "adaptive: bins of at least 2, memory of at least 1, floor in (0, 1] and patience "
                f"of at least 0 are needed, got {self.bins}, {self.memory}, {self.floor} and "
                f"{self.patience}"
            )

    def init(self) -> Histogram:
        return Histogram(jnp.ones(self.bins), jnp.zeros(self.bins))

    def draw(self, state: Histogram, u: Array) -> Draw:
        edges = self._edges()
        shares = self.shares(state)
        cumulative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(shares)])
        log_w = jnp.interp(u, cumulative / cumulative[-1], edges)
        width = edges[1] - edges[0]
        drawn = shares[self._bin(log_w)] / width
        w = jnp.exp(log_w)
        return Draw(w, self.levels.density(w) / drawn)

    def update(self, state: Histogram, w: Array, losses: Array) -> Histogram:
        place = self._bin(jnp.log(w))
        count = ops.segment_sum(jnp.ones_like(losses), place, self.bins)
        total = ops.segment_sum(losses**2, place, self.bins)
        # A plain mean at first, that of about `memory` losses later.
        rate = count / jnp.minimum(jnp.maximum(state.seen + count, 1), self.memory)
        mean = total / jnp.maximum(count, 1)
        moved = state.mean_square + jnp.minimum(rate, 1) * (mean - state.mean_square)
        return Histogram(moved, state.seen + count)

    def shares(self, state: Histogram) -> Float[Array, " bins"]:
        """Share of the draws that each bin gets; they sum to 1."""
        edges = self._edges()
        middles = jnp.exp((edges[1:] + edges[:-1]) / 2)
        plain = self.levels.density(middles)
        plain = plain / jnp.sum(plain)
        keen = plain * jnp.sqrt(state.mean_square)
        keen = keen / jnp.maximum(jnp.sum(keen), jnp.finfo(keen.dtype).tiny)
        mixed = self.floor * plain + (1 - self.floor) * keen
        return jnp.where(jnp.all(state.seen >= self.patience), mixed, plain)

    def _edges(self) -> Float[Array, " edges"]:
        return jnp.linspace(jnp.log(self.levels.low), jnp.log(self.levels.high), self.bins + 1)

    def _bin(self, log_w: Array) -> Array:
        edges = self._edges()
        place = jnp.floor((log_w - edges[0]) / (edges[1] - edges[0]))
        return jnp.clip(place, 0, self.bins - 1).astype(jnp.int32)
