"""The denoising loss of one sample, for every parametrization."""

import jax.numpy as jnp

from dgjax.fields import Field
from dgjax.paths import coefficients
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["denoising_loss", "edm_weight"]


def edm_weight(w: Scalar, sigma_data: float) -> Scalar:
    """(w^2 + s^2)/(w s)^2 (Karras et al. 2022, table 1).

    With EDM preconditioning at the same s it makes the loss the plain mean square error of the
    network's output, and 1 at every noise level when the network is zero and data have standard
    deviation s around 0.
    """
    return (w**2 + sigma_data**2) / (w * sigma_data) ** 2


def denoising_loss(
    model: Field, t: Scalar, data: Sample, noise: Sample, cond: Cond = None, *, sigma_data: float
) -> Scalar:
    """Weighted square error of the model's x0, a mean over elements.

    In expectation over data and noise it is least where x0 = E[data | x], so where the score is
    that of p_t. Written in the pair, it trains any network on any path.

    Args:
        t: time on the model's path.
        data: one data sample.
        noise: standard normal, of the same shape.
        cond: what the network is conditioned on.
        sigma_data: standard deviation of the data, for the weight.
    """
    c = coefficients(model.path, t)
    x0 = model.pair(t, c.alpha * data + c.sigma * noise, cond).x0
    return edm_weight(c.sigma / c.alpha, sigma_data) * jnp.mean((x0 - data) ** 2)
