"""Difference between two log-densities of the same point, found along two routes.

A log-density does not depend on the route to its point, that of a learned score does. One route is
the probability-flow ODE. The other is the straight line y = x0 + w eps on which the noisy point was
made, with y = x/alpha and w = sigma/alpha: there identity (C) of
`dgjax.sampling.spacetime_identity` is integrated from the prior at t_max. An energy model states
the log-density of every point without a route, and this is compared with the ODE as well.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgjax.evaluation.intervals import Estimate, check_confidence, mean_interval
from dgjax.model.divergence import Divergence
from dgjax.model.field import Field
from dgjax.model.log_density import log_density
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.node_quadrature import node_quadrature
from dgjax.sampling.solvers import Solver
from dgjax.typing import Cond, Key, Sample, Scalar

__all__ = [
    "RouteGap",
    "RouteGapStatistics",
    "one_evaluation_gap",
    "route_gap",
    "route_gap_statistics",
]


class RouteGap(NamedTuple):
    """The difference for one point, in nats.

    Attributes:
        gap: log-density along the line, or by one evaluation, minus that along the ODE.
        standard_error: of `gap` from the probes.
        solver_error: estimate of the error of `gap` from the integrals.
    """

    gap: Scalar
    standard_error: Scalar
    solver_error: Scalar


class RouteGapStatistics(NamedTuple):
    """The difference over several points, in nats.

    Attributes:
        mean: mean, with Student's interval. It is common to all points.
        spread: standard deviation between points without the noise of the probes, with a chi
            interval; NaN where that noise is not known. Differences between two points are
            uncertain by sqrt(2) of it.
        probe_error: root mean square of the standard errors from the probes; infinite, which means
            unknown, if one of them is.
        solver_error: root mean square of the stated errors of the integrals.
        samples: number of points.
    """

    mean: Estimate
    spread: Estimate
    probe_error: float
    solver_error: float
    samples: int


def route_gap(
    model: Field,
    x: Sample,
    noise: Sample,
    grid: Float[Array, " n+1"],
    *,
    key: Key,
    divergence: Divergence,
    cond: Cond = None,
    solver: Solver | None = None,
) -> RouteGap:
    """Measure log p of alpha x + sigma noise at t_min along a line and along the ODE.

    Args:
        model: the field.
        x: one clean sample of any shape.
        noise: a draw of N(0, I) of the same shape.
        grid: (steps + 1,) decreasing times from t_max to t_min, with at least 6 steps, such as
            those of `grid_logsnr`.
        key: for the probes.
        divergence: trace estimator.
        cond: condition of the model.
        solver: of the ODE. By default that of `likelihood`.

    Returns:
        `RouteGap`, in nats.

    Raises:
        ValueError: as `likelihood` and `node_quadrature`.
    """
    keys = jax.random.split(key)
    line = jax.vmap(lambda t: model.path.alpha(t) * x + model.path.sigma(t) * noise)(grid)
    ode = likelihood(
        model, line[-1], grid, key=keys[0], divergence=divergence, cond=cond, solver=solver
    )
    straight = node_quadrature(
        model, grid, line, key=keys[1], divergence=divergence, cond=cond, batch=1
    )
    error = jnp.hypot(ode.info.standard_error, straight.standard_error[-1])
    lost = jnp.hypot(ode.info.solver_error, straight.solver_error[-1])
    return RouteGap(straight.log_density[-1] - ode.log_density, error, lost)


def one_evaluation_gap(
    model: Field,
    x: Sample,
    noise: Sample,
    grid: Float[Array, " n+1"],
    *,
    key: Key,
    divergence: Divergence,
    cond: Cond = None,
    solver: Solver | None = None,
) -> RouteGap:
    """Measure log p of alpha x + sigma noise at t_min by one evaluation and along the ODE.

    Args:
        model: a field with `energy_prediction`, best one that `normalize` returned: without it the
            gap has an unknown constant.
        x: one clean sample of any shape.
        noise: a draw of N(0, I) of the same shape.
        grid: (steps + 1,) decreasing times from t_max to t_min.
        key: for the probes.
        divergence: trace estimator.
        cond: condition of the model.
        solver: of the ODE. By default that of `likelihood`.

    Returns:
        `RouteGap`, in nats.

    Raises:
        ValueError: as `likelihood` and `log_density`.
    """
    t = jnp.asarray(grid)[-1]
    noisy = model.path.alpha(t) * x + model.path.sigma(t) * noise
    stated = log_density(model, t, noisy, cond)
    ode = likelihood(model, noisy, grid, key=key, divergence=divergence, cond=cond, solver=solver)
    return RouteGap(stated - ode.log_density, ode.info.standard_error, ode.info.solver_error)


def route_gap_statistics(gaps: RouteGap, *, confidence: float = 0.95) -> RouteGapStatistics:
    """Summarize the differences of several points.

    Args:
        gaps: `RouteGap` of (n,) leaves, from `route_gap`.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: if there are fewer than two points, or `confidence` is outside (0, 1).
    """
    from scipy import stats

    check_confidence(confidence)
    gap, probes, lost = (np.asarray(a, np.float64) for a in gaps)
    if gap.ndim != 1 or gap.size < 2:
        raise ValueError(f"gaps must be of (n,) points with n > 1, got {gap.shape}")
    freedom, noise = gap.size - 1, float(np.mean(probes**2))
    total = float(gap.var(ddof=1))
    ends = (total * freedom / stats.chi2.ppf(0.5 + s * confidence / 2, freedom) for s in (1, -1))
    known = lambda v: float(np.sqrt(max(v - noise, 0.0))) if np.isfinite(noise) else np.nan
    spread = Estimate(*map(known, (total, *ends)))
    return RouteGapStatistics(
        mean=mean_interval(gap, confidence=confidence),
        spread=spread,
        probe_error=float(np.sqrt(noise)),
        solver_error=_rms(lost),
        samples=gap.size,
    )


def _rms(values: ArrayLike) -> float:
    return float(np.sqrt(np.mean(np.asarray(values) ** 2)))
