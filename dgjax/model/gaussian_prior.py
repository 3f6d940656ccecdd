"""Densities of a model at t_max, where noise outweighs the data."""

from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from dgjax.typing import Sample, Scalar, as_float, register_dataclass

__all__ = ["GaussianPrior", "Prior", "gaussian_prior"]


class Prior(Protocol):
    """The density of a model at t_max, in the coordinates y = x/alpha and w = sigma/alpha."""

    def log_density(self, y: Sample, w: Scalar) -> Scalar:
        """Return the log-density of y in nats.

        Args:
            y: one sample divided by alpha.
            w: standard deviation of the noise divided by alpha.
        """
        ...


@register_dataclass
@dataclass(frozen=True)
class GaussianPrior:
    """The prior N(0, (w^2 + scale^2) I). Made by `gaussian_prior`.

    Attributes:
        scale: standard deviation of the data.
    """

    scale: Array

    def log_density(self, y: Sample, w: Scalar) -> Scalar:
        """Return the log-density of y in nats."""
        variance = w**2 + self.scale**2
        return -0.5 * (jnp.sum(y**2) / variance + y.size * jnp.log(2 * jnp.pi * variance))


def gaussian_prior(scale: ArrayLike = 0.0) -> GaussianPrior:
    """Make the prior N(0, (w^2 + scale^2) I) of x/alpha at t_max, with w = sigma/alpha.

    Args:
        scale: standard deviation of the data; 0 leaves the data out.

    Returns:
        A prior for `field`.
    """
    return GaussianPrior(as_float(scale))
