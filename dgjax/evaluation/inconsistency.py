r"""Inconsistency of a learned score: its log-density depends on the route of integration.

In the coordinates y = x/alpha and w = sigma/alpha, the change of log-density along a route is the
integral of the one-form

    omega = <s_y, dy> + w^2 (div s_y + |s_y|^2) d log w

(identity (C) of the documentation's Concepts). It depends on the ends alone if and only if
d omega = 0. A learned score violates that in two ways. Its Jacobian J is not symmetric, so it has
a *curl* and is no gradient; and it leaves a *residual* r in the heat equation:

    J - J^T      and      r = w^2 grad_y (div s_y + |s_y|^2) - d s_y/d log w.

Both are measured for displacements of one standard deviation of the noise, dy = w dxi. There the
curl is w^2 (J - J^T) = J_D - J_D^T, where J_D is the Jacobian of the denoiser, and the residual is
w r: the change of log-density, in nats, around a small loop.

A route along the probability-flow ODE, dy = -w^2 s_y d log w, meets both together. The
log-densities of two such routes that are w dxi apart drift apart by <transport, dxi> per unit of
log w, with the *transport* residual

    transport = w r + (J_D - J_D^T) w s_y.

These measures do not say how good a model is: an untrained network may be quite consistent. They
say how far the log-densities of a model can be trusted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from dgjax.evaluation.intervals import Estimate, mean_interval
from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.model.field import Field
from dgjax.model.manual_axes import explain_manual_axes
from dgjax.model.paths import coefficients
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, inner

__all__ = [
    "Inconsistency",
    "InconsistencyStatistics",
    "heat_residual",
    "inconsistency",
    "inconsistency_statistics",
]


class Inconsistency(NamedTuple):
    """Squared inconsistency at one point, per dimension; zero for a true score.

    `residual` and `transport` are unbiased estimates of squares, so single ones may be negative.

    Attributes:
        curl: |J_D - J_D^T|_F^2/D, in nats^2.
        residual: |w r|^2/D, in nats^2.
        transport: |w r + (J_D - J_D^T) w s_y|^2/D, in nats^2.
        jacobian: |J_D|_F^2/D, without unit: the scale with which `curl` can be compared.
    """

    curl: Scalar
    residual: Scalar
    transport: Scalar
    jacobian: Scalar


@explain_manual_axes
def heat_residual(
    model: Field,
    t: ArrayLike,
    x: Sample,
    *,
    divergence: Divergence = Hutchinson(),
    key: Key,
    cond: Cond = None,
) -> Sample:
    """Estimate w r, the residual of the heat equation, without bias.

    r = w^2 grad_y (div s_y + |s_y|^2) - d s_y/d log w, in the coordinates of this module. One
    probe costs about 6 passes of the network.

    Args:
        model: the field.
        t: a time of its path.
        x: one sample, of any shape.
        divergence: trace estimator; the result is exact if the estimator is.
        key: for the probes.
        cond: condition of the model, if any.

    Returns:
        An array of the shape of `x`: nats per standard deviation of the noise, per unit of log w.
    """
    c = coefficients(model.path, as_float(t))
    w = c.sigma / c.alpha

    def scaled(t, xi):
        # w s_y at y = x/alpha + w xi with w fixed: finite at every noise level, unlike s_y.
        alpha = model.path.alpha(t)
        return -model.pair(t, alpha * (x / c.alpha + w * xi), cond).eps

    def heat(xi):
        # w^2 (div s_y + |s_y|^2).
        n, push = jax.linearize(lambda xi: scaled(as_float(t), xi), xi)
        return jnp.mean(divergence(push, x, key)) + inner(n, n)

    still = jnp.zeros_like(x)
    unit = -2 / c.dlogsnr  # dt of a unit of log w
    n, slope = jax.jvp(lambda t: scaled(t, still), (as_float(t),), (unit,))
    return jax.grad(heat)(still) - (slope - n)


@explain_manual_axes
def inconsistency(
    model: Field,
    t: ArrayLike,
    x: Sample,
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    estimates: int = 2,
    cond: Cond = None,
) -> Inconsistency:
    """Estimate the squared curl, residual and transport residual at one point, without bias.

    The square of a single estimate of the residual contains the square of its probe noise, which
    is much larger. The mean product of two different estimates does not.

    Args:
        model: the field.
        t: a time of its path.
        x: one sample of any shape. Take alpha x_0 + sigma eps for data x_0.
        key: for the probes.
        divergence: trace estimator, used once for the curl and once for each estimate.
        estimates: number of estimates of the residual, at least 2. The noise of its square falls
            with the number of pairs of estimates.
        cond: condition of the model, if any.

    Returns:
        `Inconsistency`. Use `jax.vmap` over points, then `inconsistency_statistics`.

    Raises:
        ValueError: if `estimates` is not an int above 1.
    """
    if not isinstance(estimates, int) or estimates < 2:
        raise ValueError(
            f"estimates must be an int above 1, got {estimates!r}: the square of a single one is "
            "biased by its probe noise"
        )
    c = coefficients(model.path, as_float(t))
    trace_key, *keys = jax.random.split(key, estimates + 1)

    def denoised(xi):
        return model.pair(as_float(t), x + c.sigma * xi, cond)

    pair, push = jax.linearize(denoised, jnp.zeros_like(x))
    forward = lambda z: push(z).x0 * (c.alpha / c.sigma)
    backward = jax.linear_transpose(forward, x)
    twist = lambda z: forward(z) - backward(z)[0]  # J_D - J_D^T, whose transpose is its negative

    def trace(product):
        return jnp.mean(divergence(product, x, trace_key)) / x.size

    def residual(key):
        return heat_residual(model, t, x, divergence=divergence, key=key, cond=cond)

    every = jax.vmap(residual)(jnp.stack(keys))
    return Inconsistency(
        curl=trace(lambda z: -twist(twist(z))),
        residual=_square(every) / x.size,
        transport=_square(every - twist(pair.eps)[None]) / x.size,
        jacobian=trace(lambda z: backward(forward(z))[0]),
    )


def _square(estimates):
    """Return an unbiased |a|^2 from independent estimates of a along the first axis."""
    count, total = estimates.shape[0], jnp.sum(estimates, 0)
    return (inner(total, total) - inner(estimates, estimates)) / (count * (count - 1))


class InconsistencyStatistics(NamedTuple):
    """Root mean squares over the points of one noise level, each with Student's interval.

    Take two routes that are one standard deviation of the noise apart in every dimension, in the
    direction that matters most. The first three values say by how many nats per dimension their
    log-densities drift apart. For a random direction, divide them by sqrt(D).

    A relative measure would be large where little depends on it: for the residual at weak noise,
    where the score hardly changes with w, and for the curl at strong noise, where the denoiser
    hardly changes with y. Only the asymmetry is relative.

    Attributes:
        curl: |J_D - J_D^T|_F/sqrt(D), in nats per dimension, while one of the routes moves by a
            draw of the noise.
        residual: |w r|/sqrt(D), in nats per dimension, while the noise changes by a factor e.
        transport: |w r + (J_D - J_D^T) w s_y|/sqrt(D), in nats per dimension, along the
            probability-flow ODE while the noise changes by a factor e.
        asymmetry: |J_D - J_D^T|_F/|J_D|_F, without unit: 0 for a gradient, sqrt(2) for a random
            matrix.
        samples: number of points.
    """

    curl: Estimate
    residual: Estimate
    transport: Estimate
    asymmetry: Estimate
    samples: int


def inconsistency_statistics(
    points: Inconsistency, *, confidence: float = 0.95
) -> InconsistencyStatistics:
    """Summarise `inconsistency` at several points of one noise level.

    Each interval is that of a mean square, of whose ends the roots are returned. It contains the
    noise of the probes. Where this noise dominates, a mean square may be negative; its root is
    returned as 0.

    Args:
        points: leaves (n,), from `jax.vmap` of `inconsistency`.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: if the leaves are not (n,) with n > 0 or not finite, or `confidence` is outside
            (0, 1).
    """
    curl, residual, transport, jacobian = (np.asarray(leaf, np.float64) for leaf in points)
    shapes = {leaf.shape for leaf in (curl, residual, transport, jacobian)}
    if len(shapes) > 1 or curl.ndim != 1 or not curl.size:
        raise ValueError(f"leaves must all be (n,) with n > 0, got {sorted(shapes)}")
    if not all(np.isfinite(leaf).all() for leaf in (curl, residual, transport, jacobian)):
        raise ValueError("inconsistencies must be finite; some are NaN or infinite")

    def root(squares: ArrayLike) -> Estimate:
        found = mean_interval(squares, confidence=confidence)
        return Estimate(*np.sqrt(np.maximum(found, 0)).tolist())

    with np.errstate(invalid="ignore", divide="ignore"):  # NaN for a Jacobian of 0
        ratio = curl.mean() / jacobian.mean()
        # Student's interval for a ratio of means, linearised in each point.
        ratios = ratio + (curl - ratio * jacobian) / jacobian.mean()
    return InconsistencyStatistics(
        curl=root(curl),
        residual=root(residual),
        transport=root(transport),
        asymmetry=root(ratios),
        samples=curl.size,
    )
