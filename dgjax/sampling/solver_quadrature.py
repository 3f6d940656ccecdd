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
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.model.paths import Path, coefficients
from dgjax.sampling.interpolation import RHO, dlog_w_du, lagrange, u_of_logsnr, weights
from dgjax.sampling.spacetime_identity import cumulative_log_density, log_density_gain
from dgjax.sampling.state import Node
from dgjax.typing import Sample, Scalar, inner, safe_sqrt

__all__ = ["NodeIntegral", "integrate_nodes", "residual_gain", "weighted_sum"]

# Points through which rates, and D and -sigma s, are interpolated, and fewer to compare with.
RATE_POINTS, RESIDUAL_POINTS = 6, 4
FEWER_RATE_POINTS, FEWER_RESIDUAL_POINTS = 4, 3
NEIGHBOURHOOD = 5  # points of which the middle one is compared with a curve through the others


class NodeIntegral(NamedTuple):
    """Log-densities at the points of a trajectory, with two errors of the last one, in nats.

    Attributes:
        log_densities: (n+1, m), one by each divergence estimate.
        scatter: standard error of their mean from the scatter of the rates about a smooth curve.
            It assumes probes that are independent in time. NaN for fewer than 5 points.
        error: estimate of the size of the quadrature's error.
    """

    log_densities: Float[Array, "n+1 m"]
    scatter: Scalar
    error: Scalar


@jax.jit  # hundreds of small operations, which outside of a jit are compiled one by one
def integrate_nodes(
    path: Path,
    ts: Float[Array, " n+1"],
    xs: Float[Array, "n+1 ..."],
    nodes: Node,
    start: Scalar | Float[Array, " m"],
) -> NodeIntegral:
    """Integrate (C) along a trajectory that follows a known drift.

    Args:
        path: of the model.
        ts: (n+1,) monotone times.
        xs: (n+1, *shape) points.
        nodes: what is known at each point; every leaf has a leading axis n+1.
        start: log-density of the first point in nats, one number or (m,).

    Returns:
        `NodeIntegral`.
    """
    c = jax.vmap(lambda t: coefficients(path, t))(ts)
    us = u_of_logsnr(c.logsnr)
    shaped = lambda a: a.reshape(-1, *[1] * (xs.ndim - 1))
    ys = xs / shaped(c.alpha)
    data, noise = ys - nodes.slope, -shaped(c.sigma) * nodes.score

    def rate(c, score, divergences, slope):
        return log_density_gain(c, score, divergences, slope, jnp.ones((), us.dtype))

    rates = jax.vmap(rate)(c, nodes.score, nodes.divergences, nodes.slope)
    rates = rates * dlog_w_du(us)[:, None]
    smooth_rates = jnp.sum(noise.reshape(us.shape[0], -1) ** 2, -1) * dlog_w_du(us)

    count = ts.shape[0]
    near, few_near = _nearest(count, RESIDUAL_POINTS, FEWER_RESIDUAL_POINTS)
    wide, few_wide = _nearest(count, RATE_POINTS, FEWER_RATE_POINTS)

    def gain(i, near, few_near, wide, few_wide):
        ends = us[i], us[i + 1]

        def through(near_valid, wide_valid):
            weigh = partial(weights, us[near], near_valid, *ends)
            residual = residual_gain(weigh, ends, (ys[i], ys[i + 1]), data[near], noise[near])
            return residual, weights(us[wide], wide_valid, *ends)

        residual, integral = through(jnp.ones_like(few_near), jnp.ones_like(few_wide))
        few_residual, few_integral = through(few_near, few_wide)
        lost, moved = residual - few_residual, integral - few_integral
        difference = moved @ jnp.mean(rates[wide], 1) + lost
        size = jnp.abs(moved @ smooth_rates[wide]) + jnp.abs(lost)
        return integral @ rates[wide] + residual, integral, difference, size

    gains, integrals, differences, sizes = jax.vmap(gain)(
        jnp.arange(count - 1), near, few_near, wide, few_wide
    )
    log_densities = cumulative_log_density(path, ts, xs[0].size, start, gains)
    total = jnp.zeros_like(us).at[wide].add(integrals)
    errors = total * _deviations(us, jnp.mean(rates, 1))
    scatter = safe_sqrt(jnp.sum(errors**2))
    error = jnp.maximum(jnp.abs(jnp.sum(differences)), 0.5 * jnp.sum(sizes))
    return NodeIntegral(log_densities, scatter, error)


def _deviations(us: Float[Array, " n+1"], values: Float[Array, " n+1"]) -> Float[Array, " n+1"]:
    """Estimate the independent error of each value, up to its sign.

    It is the distance from the curve through the neighbours, over what that distance is expected
    to be for errors of size 1. NaN for fewer than 5 values.
    """
    count = us.shape[0]
    if count < NEIGHBOURHOOD:
        return jnp.full_like(us, jnp.nan)
    first = np.clip(np.arange(count) - NEIGHBOURHOOD // 2, 0, count - NEIGHBOURHOOD)
    around = first[:, None] + np.arange(NEIGHBOURHOOD)[None]
    others = around[around != np.arange(count)[:, None]].reshape(count, -1)

    def deviation(i, others):
        (curve,) = lagrange(us[others], jnp.ones(others.shape, bool), us[i][None])
        distance = values[i] - curve @ values[others]
        return distance / jnp.sqrt(1 + jnp.sum(curve**2))

    return jax.vmap(deviation)(jnp.arange(count), others)


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


def _nearest(count: int, width: int, fewer: int) -> tuple[Array, Array]:
    """Indices (count - 1, width) of the points nearest to each interval, and which are `fewer`.

    Both are of all points where there are not so many.
    """

    def first(width):
        return np.clip(np.arange(count - 1) + 1 - width // 2, 0, count - width)[:, None]

    width, fewer = min(width, count), min(fewer, count)
    index = first(width) + np.arange(width)[None]
    valid = (index >= first(fewer)) & (index < first(fewer) + fewer)
    return jnp.asarray(index), jnp.asarray(valid)
