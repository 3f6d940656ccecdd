"""Integrals of polynomials through given points, in the variable u = w^(1/7), w = sigma/alpha.

Along a trajectory of a diffusion model the output of the network is close to a polynomial in u.
`grid_karras` is uniform in u, which is the variable of EDM, arXiv 2206.00364, eq. 5 with rho = 7.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float
from numpy.polynomial import legendre

from dgjax.typing import Scalar, as_float

__all__ = [
    "RHO",
    "dlog_w_du",
    "hermite",
    "hermite_weights",
    "lagrange",
    "u_of_logsnr",
    "unit_density",
    "weights",
]

RHO = 7.0
GAUSS_POINTS = 8  # of the Gauss-Legendre rule over one step


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
    _, ratios = _ratios(points, valid, u)
    return jnp.where(valid[None], jnp.prod(ratios, -1), 0)


def weights(
    points: Float[Array, " k"],
    valid: Bool[Array, " k"],
    start: Scalar,
    stop: Scalar,
    density: Callable[[Array], Array] = unit_density,
) -> Float[Array, " k"]:
    """Integrate the Lagrange polynomials of the valid points times a density.

    Args:
        points: (k,) interpolation points.
        valid: (k,) which of them to use. The weight of any other point is 0.
        start: lower end of the integral.
        stop: upper end, which may be the smaller number.
        density: a function of u.

    Returns:
        (k,) weights: their inner product with values at the points is the integral.
    """
    u, masses = _gauss_points(start, stop, density, points.dtype)
    return jnp.sum(masses[:, None] * lagrange(points, valid, u), 0)


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
    inverse, ratios = _ratios(points, valid, u)
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
    density: Callable[[Array], Array] = unit_density,
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
    u, masses = _gauss_points(start, stop, density, points.dtype)
    values, slopes = hermite(points, valid, sloped, u)
    return jnp.sum(masses[:, None] * values, 0), jnp.sum(masses[:, None] * slopes, 0)


def _ratios(points, valid, u) -> tuple[Array, Array]:
    """Return 1/(u_i - u_j), of shape (k, k), and (u - u_j)/(u_i - u_j), of shape (m, k, k).

    They are 0 and 1 for j = i, and where point j is not valid.
    """
    other = valid[None] & ~jnp.eye(points.shape[0], dtype=bool)
    distance = jnp.where(other, points[:, None] - points[None], 1)
    ratios = jnp.where(other[None], (u[:, None, None] - points[None, None]) / distance[None], 1)
    return jnp.where(other, 1 / distance, 0), ratios


def _gauss_points(start, stop, density, dtype) -> tuple[Array, Array]:
    """Return the points of the Gauss-Legendre rule, and the density times its weights."""
    gauss, masses = (as_float(a).astype(dtype) for a in legendre.leggauss(GAUSS_POINTS))
    u = 0.5 * (start + stop) + 0.5 * (stop - start) * gauss
    return u, 0.5 * (stop - start) * masses * density(u)
