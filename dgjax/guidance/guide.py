r"""The interface of guides, and the score weight that many of them set.

A guide maps (drift, local) to a new drift. A sampler starts from the velocity u of the model and
applies its guides one after the other. Let s be the score and v any drift. Along a trajectory of v

    d log p_t(x_t)/dt = -div u + <v - u, s>.                                           (A)

This is identity (A) of the page Concepts. Estimation reads it from left to right. Guidance solves
it for v: among all drifts along which the log-density changes at rate b, the one closest to an
incoming drift v is v + (b + div u - <v - u, s>) s/|s|^2.

The score weight eta of a drift measures its component along the score. That component equals the
one of f x - g^2/2 eta s, and the log-density changes at

    d log p_t/dt = -div u + g^2/2 (1 - eta) |s|^2.

The probability-flow ODE has eta = 1.

Guides are frozen dataclasses whose numbers are array leaves. A changed number does not recompile,
`vmap` sweeps it and `grad` differentiates in it.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from dgjax.model.local import Local
from dgjax.typing import Sample, Scalar, inner

__all__ = [
    "Guide",
    "HasTarget",
    "ScoreWeightGuide",
    "apply_guides",
    "score_weight",
    "with_score_weight",
]


class Guide(Protocol):
    """A function from a drift to a guided drift.

    Examples:
        A guide that pulls the denoised sample to a point, with a strength that `jax.vmap` can
        sweep:

        >>> import jax, dgjax
        >>> from dataclasses import dataclass
        >>> @dgjax.register_dataclass
        ... @dataclass(frozen=True)
        ... class Pull:
        ...     point: jax.Array
        ...     strength: jax.Array
        ...
        ...     def __call__(self, drift, local: dgjax.Local):
        ...         denoised = (local.x + local.sigma**2 * local.score) / local.alpha
        ...         pace = local.g2 / local.sigma**2
        ...         return drift - self.strength * pace * (self.point - denoised)
        >>> data = dgjax.gaussian([1.0, -2.0], 0.25)
        >>> model = dgjax.closed_form(data, dgjax.edm(), t_min=0.01, t_max=80.0)
        >>> key = jax.random.key(0)
        >>> x = dgjax.prior_sample(model, key, (2,))
        >>> grid = dgjax.grid_karras(model, 32)
        >>> pull = Pull(jnp.array([3.0, 3.0]), jnp.array(0.1))
        >>> free, pulled = (
        ...     dgjax.sample(model, x, grid, key=key, guides=guides, divergence=dgjax.Exact())
        ...     for guides in ((), (pull,))
        ... )
        >>> bool(pulled.log_density < free.log_density)  # the point is far from the data
        True
    """

    def __call__(self, drift: Sample, local: Local) -> Sample:
        """Return the guided drift.

        Args:
            drift: the drift after all earlier guides, of the shape of one sample.
            local: the model at the current point.
        """
        ...


class ScoreWeightGuide:
    """Base class of guides that set the score weight eta within a bound.

    A subclass is a frozen dataclass with a field `bound` and the method `weight_change`. It adds
    to the incoming drift what sets the rate of the log-density, along `direction`. The component of
    earlier guidance perpendicular to the score is kept, so put such a guide last.

    Attributes:
        bound: eta stays in [1 - bound, 1 + bound].
    """

    bound: Scalar

    @abstractmethod
    def weight_change(self, local: Local) -> Scalar:
        """Return eta - 1 before the bound is applied."""

    def direction(self, local: Local) -> Sample:
        """Return the direction along which the drift is changed: the score."""
        return local.nonzero_score

    def __call__(self, drift: Sample, local: Local) -> Sample:
        """Return `drift` with the bounded score weight."""
        eta = 1 + jnp.clip(self.weight_change(local), -self.bound, self.bound)
        return with_score_weight(drift, local, eta, self.direction(local))

    def excess(self, local: Local) -> Scalar:
        """Return how far eta would be outside the bound; 0 where the bound does not act."""
        return jnp.maximum(jnp.abs(self.weight_change(local)) - self.bound, 0)


@runtime_checkable
class HasTarget(Protocol):
    """A guide that aims at a log-density at t_min."""

    def met(self, log_density: Scalar, error: Scalar, size: int) -> Scalar:
        """Return whether the log-density is close enough to the target, its error included.

        Args:
            log_density: the log-density reached at t_min, in nats.
            error: stated error of `log_density` in nats; NaN if unknown.
            size: number of elements D of one sample.
        """
        ...


def apply_guides(guides: Sequence[Guide], local: Local) -> Sample:
    """Apply all guides in order, starting from the velocity, and return the drift."""
    drift = local.velocity
    for guide in guides:
        drift = guide(drift, local)
    return drift


def score_weight(drift: Sample, local: Local) -> Scalar:
    """Return the score weight eta of `drift`; it is 1 for the velocity.

    For this eta, `with_score_weight(drift, local, eta)` is `drift` itself.
    """
    if drift is local.velocity:  # without guides it is known
        return jnp.ones((), drift.dtype)
    steered = drift - local.velocity
    return 1 - 2 * (inner(steered, local.nonzero_score) / local.score_norm2) / local.g2


def with_score_weight(
    drift: Sample, local: Local, eta: Scalar, direction: Sample | None = None
) -> Sample:
    """Return `drift`, changed along d so that log p_t changes at -div u + g^2/2 (1 - eta) <s, d>.

    Args:
        drift: the drift so far.
        local: the model at the current point.
        eta: the score weight.
        direction: d, with <s, d> > 0. By default the score s: its component of the drift becomes
            that of f x - g^2/2 eta s.
    """
    score = local.nonzero_score
    direction = score if direction is None else direction
    along = inner(drift - local.velocity, score) / inner(direction, score)
    return drift + (0.5 * local.g2 * (1 - eta) - along) * direction
