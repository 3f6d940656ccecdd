"""The denoising loss of one sample, for every parametrization, and what each noise level counts.

The loss of training is |x0hat - x0|^2 per element times a weight of w = sigma/alpha. Weightings
differ in what a network of limited size spends itself on; their optimum is the same.
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from dgjax.model.field import Field, denoise
from dgjax.model.paths import coefficients
from dgjax.typing import Cond, Sample, Scalar

__all__ = [
    "WEIGHTINGS",
    "EDMWeighting",
    "LikelihoodWeighting",
    "SigmoidWeighting",
    "Weighting",
    "denoising_loss",
]


class Weighting(Protocol):
    """Weight of the square error of x0 at w, where log w is drawn with `density`."""

    def __call__(self, w: Scalar, density: Scalar) -> Scalar: ...


@dataclass(frozen=True)
class EDMWeighting:
    """(w^2 + s^2)/(w s)^2, whatever the density (Karras et al. 2022, table 1).

    The distribution of the noise levels then decides what counts. With EDM preconditioning at
    the same s it makes the loss the plain mean square error of the network's output, and 1 at
    every noise level when the network is zero and data have standard deviation s around 0.
    """

    sigma_data: float

    def __post_init__(self):
        if not self.sigma_data > 0:
            raise ValueError(f"loss: sigma_data must be positive, got {self.sigma_data}")

    def __call__(self, w: Scalar, density: Scalar) -> Scalar:
        return (w**2 + self.sigma_data**2) / (w * self.sigma_data) ** 2


@dataclass(frozen=True)
class LikelihoodWeighting:
    """1/w^2 over the density, so that the loss is the integral of |epshat - eps|^2 d log w.

    That is the diffusion term of the variational bound on -log p, in nats per element (Kingma
    et al. 2021, equation 15; Song et al. 2021, arXiv 2101.09258), whatever the density.
    """

    def __call__(self, w: Scalar, density: Scalar) -> Scalar:
        return 1 / (w**2 * density)


@dataclass(frozen=True)
class SigmoidWeighting:
    """`LikelihoodWeighting` times sigmoid(bias - log-SNR), for the looks of samples.

    Noise too faint to be seen counts for little (Kingma and Gao 2023, arXiv 2303.00848). With a
    larger bias fainter noise counts.
    """

    bias: float = 2.0

    def __call__(self, w: Scalar, density: Scalar) -> Scalar:
        return jax.nn.sigmoid(self.bias + 2 * jnp.log(w)) / (w**2 * density)


WEIGHTINGS = {
    "edm": EDMWeighting,
    "likelihood": LikelihoodWeighting,
    "sigmoid": SigmoidWeighting,
}


def denoising_loss(
    model: Field, t: Scalar, data: Sample, noise: Sample, cond: Cond = None
) -> Scalar:
    """Square error of the model's x0, a mean over elements, before any weighting.

    In expectation over data and noise it is least where x0 = E[data | x], so where the score is
    that of p_t. Written in the pair, it trains any network on any path.

    Args:
        t: time on the model's path.
        data: one data sample.
        noise: standard normal, of the same shape.
        cond: what the network is conditioned on.
    """
    c = coefficients(model.path, t)
    x0 = denoise(model, t, c.alpha * data + c.sigma * noise, cond)
    return jnp.mean((x0 - data) ** 2)
