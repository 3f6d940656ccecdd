"""Prior guidance: the norm of the latent sets its prior log-density ([DG] section 3).

Under N(0, sigma^2 I) the norm |x_T|/sigma follows a chi law with D degrees of freedom, and
log p_T falls with it: a smaller norm is a higher prior log-density.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax.scipy.special import gammainc
from jaxtyping import ArrayLike

from dgjax.model.field import Field
from dgjax.typing import Key, Sample, Scalar, as_float, concrete

__all__ = ["chi_quantile", "prior_guidance", "prior_sample", "with_norm"]


def prior_sample(model: Field, key: Key, shape: tuple[int, ...]) -> Sample:
    """One latent x_T from N(0, sigma(t_max)^2 I)."""
    return model.path.sigma(model.t_max) * jax.random.normal(key, shape)


def with_norm(model: Field, x: Sample, norm: ArrayLike) -> Sample:
    """`x` rescaled so that |x|/sigma(t_max) is `norm`.

    Raises:
        ValueError: if the norm is not positive, or x is zero.
    """
    norm = as_float(norm)
    numbers, values = concrete(norm), concrete(x)
    if numbers is not None and not (numbers > 0).all():
        raise ValueError(f"norm must be positive, got {numbers}")
    if values is not None and not np.any(values):
        raise ValueError("a zero latent has no direction to rescale; draw another")
    return x * (norm * model.path.sigma(model.t_max) / jnp.sqrt(jnp.sum(x**2)))


def chi_quantile(q: ArrayLike, size: int) -> Scalar:
    """Quantile of the chi law with `size` degrees of freedom: the norm of standard normal noise.

    Raises:
        ValueError: if q is outside (0, 1).
    """
    q = _quantile(q)
    # The norm has a standard deviation below 1 around sqrt(size), in any dimension.
    middle = jnp.sqrt(as_float(size))
    return optimistix.root_find(
        lambda norm, q: gammainc(0.5 * size, 0.5 * norm**2) - q,
        optimistix.Bisection(rtol=0.0, atol=0.0, flip=False),  # type: ignore[call-arg]
        middle,
        args=q,
        options={"lower": jnp.maximum(middle - 10, 0), "upper": middle + 10},
        max_steps=64,
        throw=False,
    ).value


def prior_guidance(model: Field, x: Sample, quantile: ArrayLike) -> Sample:
    """`x` rescaled to the norm at which its prior log-density is at `quantile`.

    Quantile 0.5 is the median norm, from which density guidance starts in [DG]; above it the
    log-density is higher and the norm smaller.

    Raises:
        ValueError: if the quantile is outside (0, 1).
    """
    return with_norm(model, x, chi_quantile(1 - _quantile(quantile), x.size))


def _quantile(q: ArrayLike) -> Scalar:
    q = as_float(q)
    numbers = concrete(q)
    if numbers is not None and not ((numbers > 0) & (numbers < 1)).all():
        raise ValueError(f"a quantile must lie strictly between 0 and 1, got {numbers}")
    return q
