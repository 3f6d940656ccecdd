"""Integrals of polynomials through given points, in the variable u = w^(1/7), w = sigma/alpha.

Along a trajectory of a diffusion model the output of the network is close to a polynomial in u.
`grid_karras` is uniform in u, which is the variable of EDM, arXiv 2206.00364, eq. 5 with rho = 7.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float
from numpy.polynomial import legendre

from dgjax.typing import Scalar, as_float

__all__ = [
    "RHO",
    "dlog_w_du",
    "hermite",
    "hermite_weights",
    "lagrange",
    "quadrature",
    "u_of_logsnr",
    "unit_density",
    "weights",
]

RHO = 7.0
GAUSS_POINTS = 8  # of the Gauss-Legendre rule over one step

Density = Callable[[Array], Array]


def u_of_logsnr(logsnr: ArrayLike) -> Array:
    """Return u = w^(1/7) at a log-SNR of -2 log w."""
    return jnp.exp(-0.5 * as_float(logsnr) / RHO)


def dlog_w_du(u: Array) -> Array:
    """Return the derivative of log w in u."""
    return RHO / u


def unit_density(u: Array) -> Array:
    """Return 1 at every u: the density of plain integrals in `weights`."""
    return jnp.ones_like(u)


def lagrange(
    points: Float[Array, " k"], valid: Bool[Array, " k"], u: Float[Array, " m"]
) -> Float[Array, "m k"]:
    """Evaluate the Lagrange polynomials of the valid points at every u.

    Args:
        points: (k,) interpolation points.
        valid: (k,) which of them to use. The polynomial of any other point is 0.
        u: (m,) where to evaluate.

    Returns:
        (m, k) values.
    """
    ratios = _ratios(points, _others(valid), u)
    return jnp.where(valid[None], jnp.prod(ratios, -1), 0)


def quadrature(
    points: Float[Array, " k"], valid: Bool[Array, " k"], start: Scalar, stop: Scalar
) -> Callable[..., Float[Array, " k"]]:
    """Return a function that integrates the Lagrange polynomials of the valid points.

    Args:
        points: (k,) interpolation points.
        valid: (k,) which of them to use. The weight of any other point is 0.
        start: lower end of the integrals.
        stop: upper end, which may be the smaller number.

    Returns:
        A function of a density, itself a function of u, or of nothing for the density 1. It returns
        (k,) weights: their inner product with values at the points is the integral of the
        polynomial times the density.
    """
    u, masses = _gauss_points(start, stop, points.dtype)
    polynomials = lagrange(points, valid, u)

    def weigh(density: Density = unit_density) -> Array:
        return jnp.sum((masses * density(u))[:, None] * polynomials, 0)

    return weigh


def weights(
    points: Float[Array, " k"],
    valid: Bool[Array, " k"],
    start: Scalar,
    stop: Scalar,
    density: Density = unit_density,
) -> Float[Array, " k"]:
    """Return the weights of `quadrature` for one density."""
    return quadrature(points, valid, start, stop)(density)


def hermite(
    points: Float[Array, " k"],
    valid: Bool[Array, " k"],
    sloped: Bool[Array, " k"],
    u: Float[Array, " m"],
) -> tuple[Float[Array, "m k"], Float[Array, "m k"]]:
    """Evaluate the Hermite polynomials of values at some points, and slopes at some of these.

    Args:
        points: (k,) interpolation points.
        valid: (k,) at which of them the value is used.
        sloped: (k,) at which of the valid ones the derivative in u is used, too.
        u: (m,) where to evaluate.

    Returns:
        Two arrays (m, k): the coefficient of each value and of each derivative, at every u. It is
        0 for those that are not used.
    """
    sloped = valid & sloped
    other = _others(valid)
    ratios = _ratios(points, other, u)
    inverse = jnp.where(other, 1 / _distances(points, other), 0)
    passed = u[:, None] - points[None]
    ratios = jnp.where(sloped[None, None], ratios**2, ratios)
    product = jnp.where(valid[None], jnp.prod(ratios, -1), 0)
    times = jnp.where(sloped, 2, 1).astype(points.dtype)
    rate = jnp.sum(times[None] * inverse, -1)
    values = product * jnp.where(sloped[None], 1 - rate[None] * passed, 1)
    return values, jnp.where(sloped[None], product * passed, 0)


def hermite_weights(
    points: Float[Array, " k"],
    valid: Bool[Array, " k"],
    sloped: Bool[Array, " k"],
    start: Scalar,
    stop: Scalar,
    density: Density = unit_density,
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Integrate the Hermite polynomials times a density.

    Args:
        points: (k,) interpolation points.
        valid: (k,) at which of them the value is used.
        sloped: (k,) at which of the valid ones the derivative in u is used, too.
        start: lower end of the integral.
        stop: upper end, which may be the smaller number.
        density: a function of u.

    Returns:
        Two arrays (k,): weights of the values and of the derivatives.
    """
    u, masses = _gauss_points(start, stop, points.dtype)
    masses = masses * density(u)
    values, slopes = hermite(points, valid, sloped, u)
    return jnp.sum(masses[:, None] * values, 0), jnp.sum(masses[:, None] * slopes, 0)


def _others(valid: Array) -> Array:
    """Return (k, k): for each point, which of the others are valid."""
    return valid[None] & ~np.eye(valid.shape[0], dtype=bool)


def _distances(points: Array, other: Array) -> Array:
    """Return u_i - u_j, of shape (k, k), and 1 where point j is not among the `other`."""
    return jnp.where(other, points[:, None] - points[None], 1)


def _ratios(points: Array, other: Array, u: Array) -> Array:
    """Return (u - u_j)/(u_i - u_j), of shape (m, k, k), and 1 where j is not among the `other`."""
    passed = (u[:, None] - points[None])[:, None]
    return jnp.where(other[None], passed / _distances(points, other)[None], 1)


def _gauss_points(start, stop, dtype) -> tuple[Array, Array]:
    """Return the points of the Gauss-Legendre rule and its weights."""
    gauss, masses = (0.5 * a for a in legendre.leggauss(GAUSS_POINTS))
    length = stop - start
    return start + length * (0.5 + gauss).astype(dtype), length * masses.astype(dtype)
