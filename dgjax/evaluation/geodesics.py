r"""Spacetime geometry of a diffusion model: distances between denoising posteriors.

The posteriors p(x_0 | x_t), one for every point (x, t), form an exponential family with sufficient
statistics (x_0, |x_0|^2) (Spacetime Geometry of Denoising, arXiv 2505.17517). In the scaled
coordinates y = x/alpha and w = sigma/alpha, with the denoiser D(y, w) = E[x_0 | x_t],

    natural parameters      (y/w^2, -1/(2 w^2))  =  (alpha x/sigma^2, -alpha^2/(2 sigma^2)),
    expectation parameters  (D, |D|^2 + w^2 div_y D).

The Fisher-Rao metric is <d natural, d expectation>. For two members of the family, <difference of
natural, difference of expectation> is the Jeffreys divergence KL(p|q) + KL(q|p). So the energy of a
curve needs one evaluation and one Hessian product per point, and no metric tensor.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.divergence import Divergence, Hutchinson, check_count
from dgjax.model.faults import first, refuse
from dgjax.model.field import Field, condition, denoise
from dgjax.model.manual_axes import explain_manual_axes
from dgjax.model.paths import logsnr
from dgjax.sampling.checks import (
    check_in_range,
    check_sample,
    check_shape,
    check_trajectory_shape,
)
from dgjax.sampling.traced_numbers import check_model
from dgjax.typing import Cond, Key, Sample, Scalar, as_float

__all__ = ["Geodesic", "Posterior", "geodesic", "jeffreys", "posterior"]


class Posterior(NamedTuple):
    """The denoising posterior at one point, as parameters of its exponential family.

    Attributes:
        natural: (alpha x/sigma^2, -alpha^2/(2 sigma^2)).
        expectation: (E[x_0 | x], E[|x_0|^2 | x]).
    """

    natural: tuple[Sample, Scalar]
    expectation: tuple[Sample, Scalar]


class Geodesic(NamedTuple):
    """A curve of least energy between two points of spacetime.

    Attributes:
        ts: (n+1,) times of its points.
        xs: (n+1, *shape) its points.
        length: sum of the square roots of the Jeffreys divergences between consecutive points.
        energy: n/2 times the sum of these divergences, in nats; length^2/2 if the points are
            equally spaced.
        energies: (steps,) estimates of the energy during the optimisation, each with new probes.
    """

    ts: Float[Array, " n+1"]
    xs: Float[Array, "n+1 ..."]
    length: Scalar
    energy: Scalar
    energies: Float[Array, " steps"]


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
    check_count("batch", batch)
    ts, xs = as_float(ts), jnp.asarray(xs)
    check_trajectory_shape(ts, xs)
    check_shape(model, xs.shape[1:], "each of xs")
    model = condition(model, cond)
    points = jax.lax.map(
        lambda p: _point(model, p[0], p[1], key, divergence),
        (ts, xs),
        batch_size=min(batch, len(ts)),
    )
    return jax.vmap(_between)(_part(points, slice(None, -1)), _part(points, slice(1, None)))


def _part(points: _Point, which: slice) -> _Point:
    return jax.tree.map(lambda a: a[which], points)


def _between(a: _Point, b: _Point) -> Scalar:
    # The statistics of x_0 - c give the same product for every c. With c halfway between both D
    # the terms |D - c|^2 are equal and drop out; otherwise they cancel badly at low noise.
    c = 0.5 * (a.denoised + b.denoised)
    along = jnp.sum(((b.y - c) / b.w2 - (a.y - c) / a.w2) * (b.denoised - a.denoised))
    return along - 0.5 * (1 / b.w2 - 1 / a.w2) * (b.spread - a.spread)


@explain_manual_axes
def geodesic(
    model: Field,
    t0: ArrayLike,
    x0: Sample,
    t1: ArrayLike,
    x1: Sample,
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    segments: int = 32,
    knots: int = 6,
    steps: int = 200,
    optimiser: optax.GradientTransformation | None = None,
    batch: int = 16,
) -> Geodesic:
    """Find the curve of least energy between (x0, t0) and (x1, t1).

    Between two images at t_min its length is the diffusion edit distance (Spacetime Geometry of
    Denoising, arXiv 2505.17517): the noise that removes one image and the denoising that makes the
    other. The search starts from the geodesic of a flat data density, a semicircle in
    (y, sqrt(2 D) w). A cubic spline in (y, log w) is added to it, whose knots are optimised by
    gradient descent. Each step draws a new probe.

    Args:
        model: the field.
        t0: time of the first end.
        x0: first end, of any shape, on the model's path.
        t1: time of the second end.
        x1: second end, of the shape of `x0`.
        key: for the probes.
        divergence: trace estimator.
        cond: condition of the model, if any.
        segments: number n of segments of the curve.
        knots: number of knots of the spline between the ends.
        steps: number of steps of the optimiser.
        optimiser: `optax.adam` with a cosine decay from 0.03 by default.
        batch: number of points evaluated together; it bounds memory.

    Returns:
        `Geodesic(ts, xs, length, energy, energies)`.

    Raises:
        ValueError: if the ends have different shapes or are not finite, a time is outside the
            model's range, or a count is not a positive int.
    """
    t0, t1, x0, x1 = as_float(t0), as_float(t1), jnp.asarray(x0), jnp.asarray(x1)
    for name, count in (("segments", segments), ("knots", knots), ("steps", steps)):
        check_count(name, count)
    if x0.shape != x1.shape:
        raise ValueError(f"the ends {x0.shape} and {x1.shape} must be of one shape")
    fault = check_model(model)
    for name, t, x in (("0", t0, x0), ("1", t1, x1)):
        fault = first(
            fault, check_sample(model, x, f"x{name}"), check_in_range(model, t, f"t{name}")
        )
    model = condition(model, cond)
    low, high = (-0.5 * logsnr(model.path, t) for t in (model.t_min, model.t_max))
    ends = [
        (x / model.path.alpha(t), -0.5 * logsnr(model.path, t)) for t, x in ((t0, x0), (t1, x1))
    ]
    share, base = _semicircle(ends, segments)
    lift = jnp.asarray(_spline(segments, knots), x0.dtype)
    (y0, _), (y1, _) = ends

    def curve(moved):
        ys = y0[None] + jnp.tensordot(share, y1 - y0, 0) + jnp.tensordot(lift, moved[0], 1)
        log_w = jnp.clip(base + lift @ moved[1], low, high)
        ts = jax.vmap(model.path.time)(-2 * log_w)
        # The conversion to log-SNR and back would change the ends by rounding errors.
        ts = ts.at[0].set(t0).at[-1].set(t1)
        return ts, jax.vmap(lambda t, y: model.path.alpha(t) * y)(ts, ys)

    def parts(moved, key):
        return jeffreys(model, *curve(moved), key=key, divergence=divergence, batch=batch)

    if optimiser is None:
        optimiser = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def step(carry, i):
        moved, state = carry
        energy, slope = jax.value_and_grad(
            lambda m: 0.5 * segments * jnp.sum(parts(m, jax.random.fold_in(key, i)))
        )(moved)
        with jax.numpy_dtype_promotion("standard"):  # schedules of optax mix dtypes
            updates, state = optimiser.update(slope, state, moved)
        return (optax.apply_updates(moved, updates), state), energy

    start = jnp.zeros((knots, *x0.shape), x0.dtype), jnp.zeros(knots, x0.dtype)
    (moved, _), energies = jax.lax.scan(step, (start, optimiser.init(start)), jnp.arange(steps))
    pieces = parts(moved, jax.random.fold_in(key, steps))
    pieces = refuse(fault, pieces)
    length = jnp.sum(jnp.sqrt(jnp.maximum(pieces, 0)))
    ts, xs = curve(moved)
    return Geodesic(ts, xs, length, 0.5 * segments * jnp.sum(pieces), energies)


def _semicircle(ends, segments: int) -> tuple[Array, Array]:
    """Return (y - y0)/(y1 - y0) and log w at n+1 equally spaced points of a flat geodesic.

    For a flat data density the posterior is N(y, w^2 I). Its metric |dy|^2/w^2 + 2 D (d log w)^2
    is that of the upper half-plane in (|y|/sqrt(2 D), w).
    """
    (y0, u0), (y1, u1) = ends
    w0, w1 = jnp.exp(u0), jnp.exp(u1)
    apart = jnp.linalg.norm((y1 - y0).ravel()) / np.sqrt(2 * y0.size)
    apart = jnp.maximum(
        apart, 1e-2 * jnp.maximum(w0, w1)
    )  # nearly vertical: a semicircle needs a width
    centre = (apart**2 + w1**2 - w0**2) / (2 * apart)
    radius = jnp.hypot(centre, w0)
    # The length along the semicircle is log tan(angle/2).
    first, last = (
        jnp.log(jnp.tan(0.5 * jnp.arctan2(w, at - centre))) for w, at in ((w0, 0.0), (w1, apart))
    )
    angle = 2 * jnp.arctan(jnp.exp(jnp.linspace(first, last, segments + 1)))
    return (centre + radius * jnp.cos(angle)) / apart, jnp.log(radius * jnp.sin(angle))


def _spline(segments: int, knots: int) -> np.ndarray:
    """Return (n+1, knots) weights of a cubic spline through `knots` values, 0 at both ends."""
    from scipy.interpolate import CubicSpline  # half a second, which `import dgjax` saves

    values = np.eye(knots + 2)[:, 1:-1]
    spline = CubicSpline(np.linspace(0, 1, knots + 2), values)
    return spline(np.linspace(0, 1, segments + 1))
