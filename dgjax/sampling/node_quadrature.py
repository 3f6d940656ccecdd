r"""Log-density along a smooth trajectory from what is known at its own points, and nowhere else.

In scaled coordinates y = x/alpha, w = sigma/alpha a marginal is the data with noise of standard
deviation w added, which obeys the heat equation. Along any curve

    d log p = <s_y, dy> + w^2 (Lap_y log p + |s_y|^2) d log w,                          (C)

with log p_t(x) = log p(y; w) - D log alpha. It holds whatever made the curve, so the error of a
solver drops out of the log-density of the point that it reached.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.model.paths import Coefficients, Path, coefficients
from dgjax.sampling.interpolation import RHO, clock, lagrange, log_w_rate, weights
from dgjax.typing import Sample, Scalar, inner

__all__ = ["Node", "accumulate", "along_drift", "gain", "gain_missed", "weighted"]

WIDE, NEAR = 6, 4  # points through which rates, and what a step missed, are interpolated
AROUND = 5  # points of which the middle one is held against a curve through the others


class Node(NamedTuple):
    """What is known at one point: score, m estimates of div u, and dy/d log w along the drift."""

    score: Sample
    divergences: Float[Array, " m"]
    slope: Sample


def gain(
    c: Coefficients, score: Sample, divergences: Float[Array, " m"], dy: Sample, dlog_w: Scalar
) -> Float[Array, " m"]:
    """(C) along (dy, d log w), once for each divergence estimate.

    w^2 Lap_y = sigma^2 Lap_x, which div u = D f - g^2/2 Lap_x gives.
    """
    curvature = 2 * c.sigma**2 * (score.size * c.f - divergences) / c.g2
    heat = curvature + c.sigma**2 * jnp.sum(score**2)
    return c.alpha * inner(score, dy) + heat * dlog_w


@jax.jit  # hundreds of small operations, which called outside of a jit are compiled one by one
def along_drift(
    path: Path,
    ts: Float[Array, " n+1"],
    xs: Float[Array, "n+1 ..."],
    nodes: Node,
    start: Scalar | Float[Array, " m"],
) -> tuple[Float[Array, "n+1 m"], Scalar]:
    """log p_t at every point of a trajectory that follows a known drift, in nats.

    (C) is integrated along the drift, and to that comes <s, dx> along what each step missed: the
    difference between the next point and where D = y - dy/d log w, interpolated through the
    points on both sides, would have led. So no differences of the points are taken, which few
    points of a network's trajectory are not smooth enough for.

    Args:
        path: of the model.
        ts: (n+1,) times, monotone.
        xs: (n+1, *shape) the points.
        nodes: what is known at each, with leading axis n+1.
        start: log-density of the first point, by each of m divergence estimates or by all.

    Returns:
        (n+1, m), by each divergence estimate, and the standard error of their mean at the last
        point, if the probes are independent in time and all else is smooth in it.
    """
    c = jax.vmap(lambda t: coefficients(path, t))(ts)
    us = clock(c.logsnr)
    shaped = lambda a: a.reshape(-1, *[1] * (xs.ndim - 1))
    ys = xs / shaped(c.alpha)
    data, noise = ys - nodes.slope, -shaped(c.sigma) * nodes.score

    def rate(c, score, divergences, slope):
        return gain(c, score, divergences, slope, jnp.ones((), us.dtype))

    rates = jax.vmap(rate)(c, nodes.score, nodes.divergences, nodes.slope)
    rates = rates * log_w_rate(us)[:, None]

    count = ts.shape[0]
    near, wide = _windows(count, NEAR), _windows(count, WIDE)

    def part(i, near, wide):
        span = us[i], us[i + 1]
        weigh = lambda window: partial(weights, us[window], jnp.ones(window.shape, bool), *span)
        missed = gain_missed(weigh(near), span, (ys[i], ys[i + 1]), data[near], noise[near])
        integral = weigh(wide)()
        return integral @ rates[wide] + missed, integral

    parts, integrals = jax.vmap(part)(jnp.arange(count - 1), near, wide)
    every = accumulate(path, ts, xs[0].size, start, parts)
    whole = jnp.zeros_like(us).at[wide].add(integrals)
    return every, jnp.linalg.norm(whole * _scatter(us, jnp.mean(rates, 1)))


def _scatter(us: Float[Array, " n+1"], values: Float[Array, " n+1"]) -> Float[Array, " n+1"]:
    """By how much values of independent errors are off: their distance from the curve through
    their neighbours, over what it is expected to be of errors of size 1. NaN of too few."""
    count = us.shape[0]
    if count < AROUND:
        return jnp.full_like(us, jnp.nan)
    first = np.clip(np.arange(count) - AROUND // 2, 0, count - AROUND)
    around = first[:, None] + np.arange(AROUND)[None]
    others = around[around != np.arange(count)[:, None]].reshape(count, -1)

    def off(i, others):
        (curve,) = lagrange(us[others], jnp.ones(others.shape, bool), us[i][None])
        distance = values[i] - curve @ values[others]
        return distance / jnp.sqrt(1 + jnp.sum(curve**2))

    return jax.vmap(off)(jnp.arange(count), others)


def gain_missed(
    weigh: Callable[..., Float[Array, " k"]],
    span: tuple[Scalar, Scalar],
    ys: tuple[Sample, Sample],
    data: Float[Array, "k ..."],
    noise: Float[Array, "k ..."],
) -> Scalar:
    """<s, dx> along what a step missed, in nats.

    Args:
        weigh: density to weights over the step, of the k points around it.
        span: clock u at both ends.
        ys: y at both ends.
        data, noise: D = y - dy/d log w and -sigma s at the k points.
    """
    start, stop = span
    pull = weigh(lambda u: (stop / u) ** RHO * log_w_rate(u))
    missed = ys[1] - (stop / start) ** RHO * ys[0] + weighted(pull, data)
    return -inner(weighted(weigh() / (stop - start), noise), missed) * stop**-RHO


def weighted(weights: Float[Array, " k"], arrays: Float[Array, "k ..."]) -> Sample:
    """Their sum, in full precision."""
    return jnp.tensordot(weights, arrays, 1, precision="highest")


def _windows(count: int, width: int) -> Array:
    """Indices (count - 1, width) of the points nearest to each interval; of all, if fewer."""
    width = min(width, count)
    first = np.clip(np.arange(count - 1) + 1 - width // 2, 0, count - width)
    return jnp.asarray(first[:, None] + np.arange(width)[None])


def accumulate(
    path: Path,
    ts: Float[Array, " n+1"],
    size: int,
    start: Scalar | Float[Array, " m"],
    parts: Float[Array, "n m"],
) -> Float[Array, "n+1 m"]:
    """From the gains between points in scaled coordinates to log p_t(x) at each."""
    volume = size * jnp.log(jax.vmap(path.alpha)(ts))
    scaled = jnp.concatenate([jnp.zeros_like(parts[:1]), jnp.cumsum(parts, 0)])
    return start + scaled - (volume - volume[0])[:, None]
