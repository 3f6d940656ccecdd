"""The loss of energy networks: denoising score matching and time-score matching together.

With y = data + w noise, the density p_w of y is a mixture of Gaussians of variance w^2, one for
each clean sample. Its logarithm has the derivatives, at fixed y,

    grad log p_w(y)      = E[-noise/w | y],
    d log p_w(y)/d log w = E[|noise|^2 - D | y],

because d log N(y; data, w^2 I)/d log w = |y - data|^2/w^2 - D. With the variance v = w^2 the second
is d log p/dv = E[-D/(2 v) + |y - data|^2/(2 v^2) | y]. On a path with alpha != 1, y = x/alpha and
w = sigma/alpha, so nothing else is needed. Both are regressions onto known quantities (dual score
matching, arXiv 2506.05310). The first alone leaves the constant of log p_w free at each w.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dgjax.model.energy import energy_of
from dgjax.model.field import Field
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["TimeScore", "dual_loss"]


@dataclass(frozen=True)
class TimeScore:
    """The section `[time_score]`: time-score matching of energy networks.

    Attributes:
        weight: weight of the time-score term. At 1 both terms are of order one.

    Raises:
        ValueError: if the weight is negative.
    """

    weight: float = 1.0

    def __post_init__(self):
        if not self.weight >= 0:
            raise ValueError(f"time_score: weight must be at least 0, got {self.weight}")


def dual_loss(
    model: Field, w: Scalar, data: Sample, noise: Sample, cond: Cond = None, *, weight: float = 1.0
) -> Scalar:
    """Return the denoising loss plus the time-score loss of an energy model, without a weighting.

    The first is that of `denoising_loss`: the squared error of the denoised sample, averaged over
    elements. The second is weight w^2 ((d log p/d log w - |noise|^2 + D)/D)^2, in the same units.
    Gradient and derivative come from one backward pass.

    Args:
        model: with `energy_prediction`.
        w: noise level sigma/alpha.
        data: one clean sample, `shape`.
        noise: standard normal noise, `shape`.
        cond: condition of the network, such as a label.
        weight: of the time-score loss.

    Returns:
        The loss of one sample.

    Raises:
        ValueError: if the model is no energy model.
    """
    energy = energy_of(model)
    y = data + w * noise
    log_p = lambda y, log_w: energy.log_density(model.network, y, jnp.exp(log_w), cond)
    score, rate = jax.grad(log_p, (0, 1))(y, jnp.log(w))
    denoising = jnp.mean((y + w**2 * score - data) ** 2)
    error = (rate - jnp.sum(noise**2 - 1)) / data.size
    return denoising + weight * w**2 * error**2
