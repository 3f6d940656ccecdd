"""Integrals of polynomials through given points, in the clock u = w^(1/7), w = sigma/alpha.

Along a trajectory of a diffusion model what a network says is closest to a polynomial in u; it is
the clock in which `grid_karras` is uniform.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float
from numpy.polynomial import legendre

from dgjax.typing import Scalar, as_float

__all__ = ["RHO", "clock", "flat", "lagrange", "log_w_rate", "weights"]

RHO = 7.0
POINTS = 8  # of the Gauss-Legendre rule over one step


def clock(logsnr: ArrayLike) -> Array:
    """u = w^(1/7), of the log-SNR -2 log w."""
    return jnp.exp(-0.5 * as_float(logsnr) / RHO)


def log_w_rate(u: Array) -> Array:
    """d log w/du."""
    return RHO / u


def flat(u: Array) -> Array:
    """The density 1."""
    return jnp.ones_like(u)


def lagrange(
    points: Float[Array, " k"], there: Bool[Array, " k"], u: Float[Array, " m"]
) -> Float[Array, "m k"]:
    """Lagrange polynomials of the `points` that are `there` at every u; 0 for the others."""
    other = there[None] & ~jnp.eye(points.shape[0], dtype=bool)
    apart = jnp.where(other, points[:, None] - points[None], 1)
    ratios = jnp.where(other, (u[:, None, None] - points) / apart, 1)
    return jnp.prod(ratios, -1) * there


def weights(
    points: Float[Array, " k"],
    there: Bool[Array, " k"],
    start: Scalar,
    stop: Scalar,
    density: Callable[[Array], Array] = flat,
) -> Float[Array, " k"]:
    """Integrals over `density` from `start` to `stop` of the Lagrange polynomials of `points`.

    Points that are not `there` take no part, and their weights are 0.
    """
    places, masses = (as_float(a).astype(points.dtype) for a in legendre.leggauss(POINTS))
    u = 0.5 * (start + stop) + 0.5 * (stop - start) * places
    values = lagrange(points, there, u)
    return 0.5 * (stop - start) * jnp.sum((masses * density(u))[:, None] * values, 0)
