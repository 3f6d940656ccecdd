r"""Denoising posteriors p(x_0 | x_t), and divergences between them.

The posteriors, one for every point (x, t), form an exponential family with sufficient statistics
(x_0, |x_0|^2) (Spacetime Geometry of Denoising, arXiv 2505.17517). In the scaled coordinates
y = x/alpha and w = sigma/alpha, with the denoiser D(y, w) = E[x_0 | x_t],

    natural parameters      (y/w^2, -1/(2 w^2))  =  (alpha x/sigma^2, -alpha^2/(2 sigma^2)),
    expectation parameters  (D, |D|^2 + w^2 div_y D).

For two members of the family, <difference of natural, difference of expectation> is the Jeffreys
divergence KL(p|q) + KL(q|p). The expectation is the gradient of the log-partition function psi in
the natural parameters, and KL(p|q) = psi(q) - psi(p) - <expectation of p, difference of natural>.
So along a curve from p to q it is the integral of <expectation - expectation of p, d natural>.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, Hutchinson, check_count
from dgjax.model.field import Field, denoise
from dgjax.model.manual_axes import explain_manual_axes
from dgjax.sampling.checks import check_shape, check_trajectory_shape
from dgjax.typing import Cond, Key, Sample, Scalar, as_float

__all__ = ["Posterior", "jeffreys", "posterior", "posterior_kl"]


class Posterior(NamedTuple):
    """The denoising posterior at one point, as parameters of its exponential family.

    Attributes:
        natural: (alpha x/sigma^2, -alpha^2/(2 sigma^2)).
        expectation: (E[x_0 | x], E[|x_0|^2 | x]).
    """

    natural: tuple[Sample, Scalar]
    expectation: tuple[Sample, Scalar]


class _Point(NamedTuple):
    """One point in scaled coordinates: y, w^2, the denoised D and an estimate of w^2 div_y D."""

    y: Sample
    w2: Scalar
    denoised: Sample
    spread: Scalar


@explain_manual_axes
def posterior(
    model: Field,
    t: ArrayLike,
    x: Sample,
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
) -> Posterior:
    """Return the natural and expectation parameters of the posterior p(x_0 | x_t = x).

    Spacetime Geometry of Denoising, arXiv 2505.17517.

    Args:
        model: the field.
        t: a time of its path.
        x: one sample at `t`, of any shape.
        key: for the probes.
        divergence: trace estimator of w^2 div_y D in E[|x_0|^2 | x].
        cond: condition of the model, if any.
    """
    p = _point(condition(model, cond), as_float(t), x, key, divergence)
    second = jnp.sum(p.denoised**2) + p.spread
    return Posterior((p.y / p.w2, -0.5 / p.w2), (p.denoised, second))


def _point(model: Field, t: Scalar, x: Sample, key: Key, divergence: Divergence) -> _Point:
    alpha, sigma = model.path.alpha(t), model.path.sigma(t)
    w2 = (sigma / alpha) ** 2
    denoised, push = jax.linearize(lambda x: denoise(model, t, x), x)
    spread = w2 * alpha * jnp.mean(divergence(push, x, key))
    return _Point(x / alpha, w2, denoised, spread)


@explain_manual_axes
def jeffreys(
    model: Field,
    ts: Float[Array, " n+1"],
    xs: Float[Array, "n+1 ..."],
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    batch: int = 16,
) -> Float[Array, " n"]:
    """Return the Jeffreys divergences KL(p|q) + KL(q|p) between posteriors at consecutive points.

    To second order each is the squared Fisher-Rao length of its segment. All points share one
    probe, so most of its noise cancels in their differences. An estimate can still be negative.

    Args:
        model: the field.
        ts: (n+1,) times.
        xs: (n+1, *shape) points, on the model's path.
        key: for the probes.
        divergence: trace estimator.
        cond: condition of the model, if any.
        batch: number of points evaluated together; it bounds memory.

    Returns:
        (n,) nats.

    Raises:
        ValueError: if there are fewer than two points, their numbers differ, or `batch` is not a
            positive int.
    """
    points = _points(condition(model, cond), ts, xs, key, divergence, batch)
    return jax.vmap(_between)(_part(points, slice(None, -1)), _part(points, slice(1, None)))


@explain_manual_axes
def posterior_kl(
    model: Field,
    ts: Float[Array, " n+1"],
    xs: Float[Array, "n+1 ..."],
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    batch: int = 16,
) -> Float[Array, " n+1"]:
    """Return KL(p_0 | p_i) from the posterior at the first point of a curve to that at each point.

    The divergence depends on the two points alone, and the curve between them is the way to
    compute it: the integral of <expectation - expectation at the first point, d natural> by
    trapezoids, whose error falls with the square of the distance of the points (Spacetime Geometry
    of Denoising, arXiv 2505.17517). All points share one probe. An estimate can be negative.

    Args:
        model: the field.
        ts: (n+1,) times.
        xs: (n+1, *shape) points, on the model's path.
        key: for the probes.
        divergence: trace estimator.
        cond: condition of the model, if any.
        batch: number of points evaluated together; it bounds memory.

    Returns:
        (n+1,) nats, of which the first is 0.

    Raises:
        ValueError: as of `jeffreys`.
    """
    points = _points(condition(model, cond), ts, xs, key, divergence, batch)
    # With the statistics of x_0 - c, c the first D, nothing large cancels.
    c, spread = points.denoised[0], points.spread[0]
    moved = points.denoised - c
    flat = lambda a: a.reshape(len(a), -1)
    second = jnp.sum(flat(moved) ** 2, 1) + points.spread - spread
    w2 = points.w2.reshape(-1, *(1,) * c.ndim)
    natural = flat((points.y - c) / w2)
    mean = lambda a: 0.5 * (a[1:] + a[:-1])
    along = jnp.sum(mean(flat(moved)) * jnp.diff(natural, axis=0), 1)
    steps = along - 0.5 * mean(second) * jnp.diff(1 / points.w2)
    return jnp.concatenate([jnp.zeros(1, steps.dtype), jnp.cumsum(steps)])


def _points(
    model: Field, ts: Array, xs: Array, key: Key, divergence: Divergence, batch: int
) -> _Point:
    """Evaluate the points of a curve, with one probe for all."""
    check_count("batch", batch)
    ts, xs = as_float(ts), jnp.asarray(xs)
    check_trajectory_shape(ts, xs)
    check_shape(model, xs.shape[1:], "each of xs")
    return jax.lax.map(
        lambda p: _point(model, p[0], p[1], key, divergence),
        (ts, xs),
        batch_size=min(batch, len(ts)),
    )


def _part(points: _Point, which: slice) -> _Point:
    return jax.tree.map(lambda a: a[which], points)


def _between(a: _Point, b: _Point) -> Scalar:
    # The statistics of x_0 - c give the same product for every c. With c halfway between both D
    # the terms |D - c|^2 are equal and drop out; otherwise they cancel badly at low noise.
    c = 0.5 * (a.denoised + b.denoised)
    along = jnp.sum(((b.y - c) / b.w2 - (a.y - c) / a.w2) * (b.denoised - a.denoised))
    return along - 0.5 * (1 / b.w2 - 1 / a.w2) * (b.spread - a.spread)
