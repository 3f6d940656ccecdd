"""Prior guidance: choose the prior log-density of a latent by its norm.

A latent is a sample at t_max, where sampling starts. Under the prior N(0, sigma^2 I) the norm
|x|/sigma follows a chi distribution with D degrees of freedom. A smaller norm is a higher prior
log-density (Density Guidance, arXiv 2502.05807, section 3).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax.scipy.special import gammainc, ndtri
from jaxtyping import ArrayLike

from dgjax.model.faults import require
from dgjax.model.field import Field
from dgjax.model.manual_axes import explain_manual_axes
from dgjax.typing import Key, Sample, Scalar, as_float, concrete

# `gammainc` loses digits as the dimension grows and the series gains them. From these dimensions,
# by bytes of a number, the series is the more accurate one.
SERIES_FROM = {4: 128, 8: 4096}

__all__ = ["chi_quantile", "prior_guidance", "prior_sample", "with_norm"]


def prior_sample(model: Field, key: Key, shape: tuple[int, ...]) -> Sample:
    """Draw one latent from the prior N(0, sigma(t_max)^2 I).

    Args:
        model: the field.
        key: random key.
        shape: shape of one sample.

    Returns:
        An array of the given shape.
    """
    return model.path.sigma(model.t_max) * jax.random.normal(key, shape)


def with_norm(model: Field, x: Sample, norm: ArrayLike) -> Sample:
    """Rescale the latent `x` so that |x|/sigma(t_max) is `norm`.

    Args:
        model: the field.
        x: one latent, of any shape.
        norm: the new norm in units of sigma(t_max), positive. The typical norm is sqrt(D).

    Returns:
        An array of the shape of x.

    Raises:
        ValueError: if the norm is not positive, or x is zero.
    """
    x = jnp.asarray(x)
    norm = require("norm", as_float(norm), "be positive", lambda norm: norm > 0)
    values = concrete(x)
    if values is not None and not np.any(values):
        raise ValueError("a zero latent has no direction to rescale; draw another")
    return x * (norm * model.path.sigma(model.t_max) / jnp.sqrt(jnp.sum(x**2)))


@explain_manual_axes
def chi_quantile(q: ArrayLike, size: int) -> Scalar:
    """Return a quantile of the chi distribution: the norm of standard normal noise.

    Args:
        q: probability in (0, 1).
        size: degrees of freedom, the number of elements D of one sample.

    Returns:
        The norm, to 1e-4 in probability at any D up to 1e8, in float32 and float64.

    Raises:
        ValueError: if q is outside (0, 1).
    """
    q = _quantile(q)
    degrees = as_float(size)
    large = SERIES_FROM[degrees.dtype.itemsize]
    if concrete(degrees) is None:
        root = _chi_root(q, jnp.minimum(degrees, large))
        return jnp.where(degrees < large, root, _chi_series(q, jnp.maximum(degrees, large)))
    return _chi_root(q, degrees) if degrees < large else _chi_series(q, degrees)


def _chi_root(q: Scalar, size: Scalar) -> Scalar:
    """Solve gammainc(size/2, norm^2/2) = q for the norm."""
    # In any dimension the norm is near sqrt(size), with a standard deviation below 1.
    middle = jnp.sqrt(size)
    return optimistix.root_find(
        lambda norm, q: gammainc(0.5 * size, 0.5 * norm**2) - q,
        optimistix.Bisection(rtol=0.0, atol=0.0, flip=False),  # type: ignore[call-arg]
        middle,
        args=q,
        options={"lower": jnp.maximum(middle - 10, 0), "upper": middle + 10},
        max_steps=64,
        throw=False,
    ).value


def _chi_series(q: Scalar, size: Scalar) -> Scalar:
    """Return the quantile by the Cornish-Fisher series of chi^2, in powers of 1/sqrt(size)."""
    z = ndtri(q)
    # norm^2 = size (1 + excess). Only the excess is rounded, so no digits of q are lost.
    h = jnp.sqrt(2 / size)
    excess = h * (
        z
        + h * (z**2 - 1) / 3
        + h**2 * (z**3 - 7 * z) / 36
        - h**3 * (3 * z**4 + 7 * z**2 - 16) / 810
        + h**4 * (9 * z**5 + 256 * z**3 - 433 * z) / 38880
    )
    middle = jnp.sqrt(size)
    return middle + middle * excess / (1 + jnp.sqrt(1 + excess))


def prior_guidance(model: Field, x: Sample, quantile: ArrayLike) -> Sample:
    """Rescale the latent `x` so that its prior log-density is at `quantile` of the prior.

    A higher quantile is a higher prior log-density and a smaller norm. Quantile 0.5 is the median
    norm (Density Guidance, arXiv 2502.05807, section 3).

    Args:
        model: the field.
        x: one latent, of any shape.
        quantile: probability in (0, 1).

    Returns:
        An array of the shape of x.

    Raises:
        ValueError: if the quantile is outside (0, 1).
    """
    x = jnp.asarray(x)
    return with_norm(model, x, chi_quantile(1 - _quantile(quantile), x.size))


def _quantile(q: ArrayLike) -> Scalar:
    wanted = "lie strictly between 0 and 1"
    return require("a quantile", as_float(q), wanted, lambda q: (q > 0) & (q < 1))
