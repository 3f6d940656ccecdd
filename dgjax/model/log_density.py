"""The log-density of models that are densities: closed forms and energy networks."""

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import ArrayLike

from dgjax.model.field import Field
from dgjax.model.parametrization import Network
from dgjax.model.paths import logsnr
from dgjax.typing import Cond, Sample, Scalar, as_float

__all__ = ["Density", "density_of", "log_density"]


@runtime_checkable
class Density(Protocol):
    """A parametrization whose network gives the log-density itself, not only the score."""

    def log_density(self, network: Network, y: Sample, w: Scalar, cond: Any) -> Scalar:
        """Return the log-density of y = x/alpha at w = sigma/alpha, in nats."""
        ...


def density_of(model: Field) -> Density:
    """Return the parametrization of a model that is a density.

    Args:
        model: the field.

    Raises:
        ValueError: if the model gives a score only.
    """
    if not isinstance(model.parametrization, Density):
        raise ValueError(
            "only a model made by closed_form or trained as an energy network "
            "(dgjax.energy_prediction) gives its log-density in one evaluation; use likelihood or "
            "quadrature for others"
        )
    return model.parametrization


def log_density(model: Field, t: ArrayLike, x: Sample, cond: Cond = None) -> Scalar:
    """Return log p_t(x) in nats of a model that is a density, from one evaluation.

    It is exact for a model made by `closed_form`. For an energy network it is as normalized as
    `normalize` made it, and as true across noise levels as its training. Its gradient in x is
    `score`.

    Args:
        model: a field made by `closed_form`, or one with `energy_prediction`, on any path.
        t: a time on the model's path. Outside of t_min and t_max, where it was not trained, an
            energy network extrapolates.
        x: one sample, of any shape.
        cond: condition of the network.

    Returns:
        The log-density, a scalar.

    Raises:
        ValueError: if the model gives a score only, or t is not one number.

    Examples:
        >>> import dgjax
        >>> zero = lambda z, t, cond: 0.0 * z.sum()  # the energy of the Gaussian itself
        >>> model = dgjax.field(
        ...     zero, dgjax.vp(), dgjax.energy_prediction(2.0), t_min=0.01, t_max=1.0
        ... )
        >>> mixture = dgjax.gaussian([0.0, 0.0], 4.0)
        >>> exact = dgjax.closed_form(mixture, dgjax.vp(), t_min=0.01, t_max=1.0)
        >>> x = jnp.array([1.0, 3.0])
        >>> print(abs(log_density(model, 0.5, x) - log_density(exact, 0.5, x)) < 1e-5)
        True
    """
    density = density_of(model)
    t, x = as_float(t), jnp.asarray(x)
    if t.ndim:
        raise ValueError(f"t must be one number, got shape {t.shape}; jax.vmap maps over several")
    alpha = model.path.alpha(t)
    w = jnp.exp(-0.5 * logsnr(model.path, t))
    return density.log_density(model.network, x / alpha, w, cond) - x.size * jnp.log(alpha)
