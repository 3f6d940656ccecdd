"""What a solve carries and what it gives back. State and diagnostics are kept apart."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgjax.guidance.guide import Guide, HasTarget
from dgjax.model.divergence import Divergence
from dgjax.model.field import Field
from dgjax.model.paths import logsnr
from dgjax.sampling.node_quadrature import Node
from dgjax.typing import Sample, Scalar

__all__ = ["Info", "Sampled", "State", "Trajectory", "summarize"]


class State(NamedTuple):
    """What the solver carries.

    `log_densities` has one entry per divergence estimate. The last two are integrals over
    log-SNR, of |sigma s|^2 and of whether a guide was stopped by its bound. `node` is what the
    model said at the point before, where the solver keeps it.
    """

    x: Sample
    log_densities: Float[Array, " n"]
    score_norm2: Scalar
    bounded: Scalar
    node: Node | None = None


class Info(NamedTuple):
    """Diagnostics of one solve.

    Attributes:
        standard_error: of `log_density` from the probes, in nats. Of a single probe it is known
            with `Multistep` only, to about a third, from the scatter in time of fresh ones; else
            NaN.
        bound_share: share of the log-SNR range on which a guide was stopped by its bound.
        least_score: least |sigma s| over the steps: root mean square within each by Runge-Kutta
            methods, at its start where a step is one evaluation.
        target_met: whether every target asked for was reached; True when none was.
        finite: whether x and its log-density are finite.
        log_densities: (n,) final log-density by each divergence estimate, in nats.
    """

    standard_error: Scalar
    bound_share: Scalar
    least_score: Scalar
    target_met: Scalar
    finite: Scalar
    log_densities: Float[Array, " n"]


class Trajectory(NamedTuple):
    """Times, states and tracked log-densities (nats) along a solve. Pass as `save`."""

    t: Scalar
    x: Sample
    log_density: Scalar


class Sampled(NamedTuple):
    """A sample with its log-density in nats at the model's t_min, and how it came about."""

    x: Sample
    log_density: Scalar
    info: Info
    trajectory: Any


def summarize(
    model: Field,
    grid: Float[Array, " n+1"],
    guides: Sequence[Guide],
    divergence: Divergence,
    end: State,
    course: Float[Array, " n+1"],
    scatter: ArrayLike,
) -> Info:
    """The diagnostics, from the final state, the course of its integral of |sigma s|^2, and the
    scatter of the probes in time."""
    steps = jnp.abs(jnp.diff(jax.vmap(lambda t: logsnr(model.path, t))(grid))).astype(course.dtype)
    share = jnp.minimum(jnp.abs(end.bounded) / jnp.sum(steps), 1)  # 1 and a quadrature error
    score = jnp.sqrt(jnp.maximum(jnp.abs(jnp.diff(course)) / steps, 0))
    log_density = jnp.mean(end.log_densities)
    met = jnp.array(True)
    for guide in guides:
        if isinstance(guide, HasTarget):
            met = met & guide.met(log_density, end.x.size)
    return Info(
        standard_error=divergence.standard_error(end.log_densities, scatter),
        bound_share=share,
        least_score=jnp.min(score),
        target_met=met,
        finite=jnp.isfinite(log_density) & jnp.all(jnp.isfinite(end.x)),
        log_densities=end.log_densities,
    )
