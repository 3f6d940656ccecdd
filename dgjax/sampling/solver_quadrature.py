r"""Log-density of a solve with `Multistep`, from the evaluations that the solver made.

**Formulas.** The solver follows dy/d log w = y - D, with D = y - dy/d log w known at each of its
points. Between two points at u0 and u1, identity (C) splits in two:

    gain = integral of the rate of (C) along the drift, from u0 to u1
         + <-sigma s, r>/w1,            r = y1 - (w1/w0) y0 + integral of (w1/v) D d log v.

r is the residual of the step: the distance between the point y1 that the solver reached and the
point where the interpolated D leads. The sum is the log-density of the points as they are, so the
error of the solver drops out. Differences of the points are never taken: a few points of a
network's trajectory are not smooth enough for that.

**Error.** The gains are found twice, the second time with fewer interpolation points. The sum of
the differences, and half of the sum of their sizes, estimate what is lost between the points. A
difference of divergences would be mostly noise of their probes, so its size is taken of |sigma s|^2
in their place, which is as smooth: under p_t its mean is that of -sigma^2 Lap log p.

**Names.** `rates` is the rate of (C) per unit of u = w^(1/7), `data` is D, `noise` is -sigma s,
and `residual_gain` is the second term.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.model.paths import Path
from dgjax.sampling.interpolation import RHO, dlog_w_du, lagrange, quadrature, weights
from dgjax.sampling.spacetime_identity import cumulative_log_density
from dgjax.sampling.state import Node
from dgjax.typing import Sample, Scalar, inner, safe_sqrt

__all__ = [
    "RESIDUAL_POINTS",
    "NodeIntegral",
    "integrate_nodes",
    "residual_gain",
    "residual_gains",
    "weighted_sum",
]

# Points through which rates, and D and -sigma s, are interpolated, and fewer to compare with.
RATE_POINTS, RESIDUAL_POINTS = 6, 4
FEWER_RATE_POINTS, FEWER_RESIDUAL_POINTS = 4, 3
NEIGHBOURHOOD = 5  # points of which the middle one is compared with a curve through the others


class NodeIntegral(NamedTuple):
    """Log-densities at the points of a trajectory, with two errors of the last one, in nats.

    Attributes:
        log_densities: (n+1, m), one by each divergence estimate.
        scatter: standard error of their mean from the scatter of the rates about a smooth curve.
            It assumes probes that are independent in time. Infinite, which means
            unknown, for fewer than 5 points.
        error: estimate of the size of the quadrature's error.
    """

    log_densities: Float[Array, "n+1 m"]
    scatter: Scalar
    error: Scalar


def residual_gains(
    us: Float[Array, " k"],
    ys: Float[Array, "k ..."],
    data: Float[Array, "k ..."],
    noise: Float[Array, "k ..."],
    filled: Scalar,
) -> tuple[Float[Array, " 3"], Float[Array, " 3"]]:
    """Return the gains of log p along the residuals of the last three steps, in nats.

    Args:
        us: (k,) u at the last k >= 4 points, newest first.
        ys: (k, *shape) y = x/alpha there.
        data: (k, *shape) D = y - dy/d log w there.
        noise: (k, *shape) -sigma s there.
        filled: how many of the k points there are.

    Returns:
        Two times (3,), newest first: by interpolation through four points, and through three. Of
        steps that there were not, any finite numbers.
    """
    us, ys, data, noise = (a[:RESIDUAL_POINTS] for a in (us, ys, data, noise))
    index = np.arange(RESIDUAL_POINTS)
    valid = jnp.asarray(index, filled.dtype) < filled
    us = jnp.where(valid, us, us[0] * (2 + index).astype(us.dtype))  # distinct and not 0
    few = np.array([index < FEWER_RESIDUAL_POINTS] * 2 + [index > 0])
    chosen = np.concatenate([np.ones_like(few), few])  # two kinds of the last three steps

    def gain(valid, u0, u1, y0, y1):
        return residual_gain(quadrature(us, valid, u0, u1), (u0, u1), (y0, y1), data, noise)

    twice = lambda a: jnp.concatenate([a, a])
    ends = [twice(a) for a in (us[1:], us[:-1], ys[1:], ys[:-1])]
    whole, fewer = jnp.split(jax.vmap(gain)(chosen & valid[None], *ends), 2)
    return whole, fewer


@jax.jit  # hundreds of small operations, which outside of a jit are compiled one by one
def integrate_nodes(
    path: Path,
    ts: Float[Array, " n+1"],
    size: Scalar,
    nodes: Node,
    start: Scalar | Float[Array, " m"],
) -> NodeIntegral:
    """Integrate (C) along a trajectory that follows a known drift.

    Args:
        path: of the model.
        ts: (n+1,) monotone times.
        size: number of elements D of a sample.
        nodes: what is known at each point; every leaf has a leading axis n+1.
        start: log-density of the first point in nats, one number or (m,).

    Returns:
        `NodeIntegral`.
    """
    us, rates, count = nodes.u, nodes.rates, ts.shape[0]
    interval = np.arange(count - 1)
    # The residual of a step is taken from the last of the points nearest to it.
    last = _first(count, RESIDUAL_POINTS) + min(RESIDUAL_POINTS, count) - 1
    residual, few_residual = (
        a[last, last - interval - 1] for a in (nodes.residuals, nodes.few_residuals)
    )
    wide, few_wide = _nearest(count, RATE_POINTS, FEWER_RATE_POINTS)

    twice = lambda a: jnp.concatenate([a, a])
    valid = jnp.asarray(np.concatenate([np.ones_like(few_wide), few_wide]))
    integrals = jax.vmap(weights)(twice(us[wide]), valid, twice(us[:-1]), twice(us[1:]))
    integral, few_integral = jnp.split(integrals, 2)
    moved, lost = integral - few_integral, residual - few_residual
    dot = lambda weights, values: jnp.einsum("ij,ij...->i...", weights, values[wide])
    differences = dot(moved, jnp.mean(rates, 1)) + lost
    sizes = jnp.abs(dot(moved, nodes.norm_rate)) + jnp.abs(lost)
    gains = dot(integral, rates) + residual[:, None]
    log_densities = cumulative_log_density(path, ts, size, start, gains)
    scatter = jnp.asarray(jnp.inf, us.dtype)
    if count >= NEIGHBOURHOOD:
        total = jnp.zeros_like(us).at[wide].add(integral)
        errors = total * _deviations(us, jnp.mean(rates, 1))
        scatter = safe_sqrt(jnp.sum(errors**2))
    error = jnp.maximum(jnp.abs(jnp.sum(differences)), 0.5 * jnp.sum(sizes))
    return NodeIntegral(log_densities, scatter, error)


def _deviations(us: Float[Array, " n+1"], values: Float[Array, " n+1"]) -> Float[Array, " n+1"]:
    """Estimate the independent error of each value, up to its sign.

    It is the distance from the curve through the neighbours, over what that distance is expected
    to be for errors of size 1. It needs at least 5 values.
    """
    count = us.shape[0]
    first = np.clip(np.arange(count) - NEIGHBOURHOOD // 2, 0, count - NEIGHBOURHOOD)
    around = first[:, None] + np.arange(NEIGHBOURHOOD)[None]
    others = around[around != np.arange(count)[:, None]].reshape(count, -1)
    valid = jnp.ones(NEIGHBOURHOOD - 1, bool)
    curve = jax.vmap(lambda points, u: lagrange(points, valid, u)[0])(us[others], us[:, None])
    distance = values - jnp.sum(curve * values[others], 1)
    return distance / jnp.sqrt(1 + jnp.sum(curve**2, 1))


def residual_gain(
    weigh: Callable[..., Float[Array, " k"]],
    ends: tuple[Scalar, Scalar],
    ys: tuple[Sample, Sample],
    data: Float[Array, "k ..."],
    noise: Float[Array, "k ..."],
) -> Scalar:
    """Return the gain of log p along the residual of one step, in nats.

    Args:
        weigh: maps a density in u to the k weights of its integral over the step.
        ends: u at the start and at the end of the step.
        ys: y = x/alpha at both.
        data: (k, *shape) D = y - dy/d log w at the k interpolation points.
        noise: (k, *shape) -sigma s there.
    """
    u0, u1 = ends
    decay = weigh(lambda u: (u1 / u) ** RHO * dlog_w_du(u))
    residual = ys[1] - (u1 / u0) ** RHO * ys[0] + weighted_sum(decay, data)
    mean_noise = weighted_sum(weigh() / (u1 - u0), noise)
    return -inner(mean_noise, residual) * u1**-RHO


def weighted_sum(weights: Float[Array, " k"], arrays: Float[Array, "k ..."]) -> Sample:
    """Return the sum of k arrays times their weights, in full precision on every device."""
    return jnp.tensordot(weights, arrays, 1, precision="highest")


def _first(count: int, width: int) -> np.ndarray:
    """Index (count - 1,) of the first of the `width` points nearest to each interval."""
    return np.clip(np.arange(count - 1) + 1 - width // 2, 0, max(count - width, 0))


def _nearest(count: int, width: int, fewer: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (count - 1, width) of the points nearest to each interval, and which are `fewer`.

    Both are of all points where there are not so many.
    """
    width, fewer = min(width, count), min(fewer, count)
    index = _first(count, width)[:, None] + np.arange(width)[None]
    first = _first(count, fewer)[:, None]
    return index, (index >= first) & (index < first + fewer)
