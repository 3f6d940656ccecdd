r"""How far a learned score is from being the score of any density that obeys the heat equation.

In the coordinates of (C), y = x/alpha and w = sigma/alpha, the change of log-density along a route
is the integral of the one-form

    omega = <s_y, dy> + w^2 (div s_y + |s_y|^2) d log w.

It depends on the ends alone if and only if d omega = 0. A learned score breaks that in two ways:
its Jacobian J is not symmetric, so that it has a *curl* and is no gradient, and it leaves a
*residual* of the heat equation,

    J - J^T      and      r = w^2 grad_y (div s_y + |s_y|^2) - d s_y/d log w.

Then every route gives another log-density, and their differences say how far any of them can be
trusted. Both parts are measured here for displacements by the standard deviation of the noise, dy
= w dxi, where they read w^2 (J - J^T) = J_D - J_D^T, J_D being the Jacobian of the denoiser, and
w r: the nats that the log-density changes by around a small loop.

A route along the probability-flow ODE, dy = -w^2 s_y d log w, sees them together: log-densities by
two such routes that lie w dxi apart drift by <w r + (J_D - J_D^T) w s_y, dxi> a unit of log w. That
is the *transport* residual: what s_y lacks to be carried by the flow as the gradient of the flow's
own log-density is.

None of it tells how good a model is: a network that has not been trained may be quite consistent.
It tells what the log-density of a model is worth.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.model.field import Field
from dgjax.model.paths import coefficients
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, inner

__all__ = ["Inconsistency", "heat_residual", "inconsistency"]


class Inconsistency(NamedTuple):
    """Squared inconsistency at one point, per dimension, in nats^2; zero for a consistent score.

    Attributes:
        curl: |J_D - J_D^T|_F^2/D.
        residual: |w r|^2/D. This and the next are unbiased, so that single ones may be negative.
        transport: |w r + (J_D - J_D^T) w s_y|^2/D.
        jacobian: |J_D|_F^2/D, which `curl` may be held against; no nats.
    """

    curl: Scalar
    residual: Scalar
    transport: Scalar
    jacobian: Scalar


def heat_residual(
    model: Field,
    t: ArrayLike,
    x: Sample,
    *,
    divergence: Divergence = Hutchinson(),
    key: Key,
    cond: Cond = None,
) -> Sample:
    """An unbiased estimate of w r, with r = w^2 grad (div s + |s|^2) - ds/d log w as above.

    Nats for a displacement by the standard deviation of the noise, a unit of log w. Costs about 6
    passes of the network for one probe.

    Args:
        model: the field.
        t: a time on its path.
        x: one sample, of any shape.
        divergence: trace estimator; the estimate is exact if it is.
        key: for the probes.
        cond: what the model is conditioned on.
    """
    c = coefficients(model.path, as_float(t))
    w = c.sigma / c.alpha

    def scaled(t, xi):
        """w s_y at y = x/alpha + w xi, w held: finite at every noise level, unlike s."""
        alpha = model.path.alpha(t)
        return -model.pair(t, alpha * (x / c.alpha + w * xi), cond).eps

    def heat(xi):
        """w^2 (div s_y + |s_y|^2)."""
        n, push = jax.linearize(lambda xi: scaled(as_float(t), xi), xi)
        return jnp.mean(divergence(push, x, key)) + inner(n, n)

    still = jnp.zeros_like(x)
    unit = -2 / c.dlogsnr  # dt of a unit of log w
    n, slope = jax.jvp(lambda t: scaled(t, still), (as_float(t),), (unit,))
    return jax.grad(heat)(still) - (slope - n)


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
    """Curl and residual of the heat equation at one point, squared.

    The square of one estimate of the residual would hold the square of its probe noise as well,
    which is much the larger. The mean product of different estimates does not.

    Args:
        model: the field.
        t: a time on its path.
        x: one sample at which the model should be trusted: alpha x_0 + sigma eps for data x_0.
        key: for the probes.
        divergence: trace estimator, used once for the curl and for each estimate of the residual.
        estimates: of the residual, at least 2. What the probes add to its square falls as fast as
            the number of their pairs grows.
        cond: what the model is conditioned on.

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
    """|a|^2 from independent estimates of a along the first axis, by products of different ones."""
    count, total = estimates.shape[0], jnp.sum(estimates, 0)
    return (inner(total, total) - inner(estimates, estimates)) / (count * (count - 1))
