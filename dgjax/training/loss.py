"""The denoising loss of one sample, and its weighting over noise levels.

The training loss is the squared error of the predicted clean data, averaged over elements, times a
weight that depends on the noise level w = sigma/alpha. All weightings have the same optimum; they
differ in where a network of limited size is most accurate.
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
    """Weight of the squared error at noise level w, where log w has the density `density`."""

    def __call__(self, w: Scalar, density: Scalar) -> Scalar:
        """Return the weight."""
        ...


@dataclass(frozen=True)
class EDMWeighting:
    """The weight (w^2 + s^2)/(w s)^2 with s = `sigma_data` (EDM, arXiv 2206.00364, table 1).

    It does not depend on the density of log w, so the noise distribution decides which noise levels
    matter. With EDM preconditioning at the same s the loss is the mean squared error of the
    network's raw output. It is 1 at every noise level for a network that returns 0 and data with
    mean 0 and standard deviation s.

    Attributes:
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: if sigma_data is not positive.
    """

    sigma_data: float

    def __post_init__(self):
        if not self.sigma_data > 0:
            raise ValueError(f"loss: sigma_data must be positive, got {self.sigma_data}")

    def __call__(self, w: Scalar, density: Scalar) -> Scalar:
        """Return the weight at w."""
        return (w**2 + self.sigma_data**2) / (w * self.sigma_data) ** 2


@dataclass(frozen=True)
class LikelihoodWeighting:
    """The weight 1/(w^2 density), which makes the loss a bound on the negative log-density.

    The loss is then the integral of |predicted eps - eps|^2 d log w, whatever the noise
    distribution. This is the diffusion term of the variational bound on -log p, in nats per element
    (VDM, arXiv 2107.00630, eq. 15; arXiv 2101.09258).
    """

    def __call__(self, w: Scalar, density: Scalar) -> Scalar:
        """Return the weight at w, where log w has the density `density`."""
        return 1 / (w**2 * density)


@dataclass(frozen=True)
class SigmoidWeighting:
    """`LikelihoodWeighting` times sigmoid(bias - log-SNR), for the visual quality of samples.

    The factor gives little weight to noise that is too weak to be seen (arXiv 2303.00848).

    Attributes:
        bias: log-SNR at which the factor is 1/2. The larger it is, the weaker the noise levels that
            still count.
    """

    bias: float = 2.0

    def __call__(self, w: Scalar, density: Scalar) -> Scalar:
        """Return the weight at w, where log w has the density `density`."""
        return jax.nn.sigmoid(self.bias + 2 * jnp.log(w)) / (w**2 * density)


WEIGHTINGS = {
    "edm": EDMWeighting,
    "likelihood": LikelihoodWeighting,
    "sigmoid": SigmoidWeighting,
}


def denoising_loss(
    model: Field, t: Scalar, data: Sample, noise: Sample, cond: Cond = None
) -> Scalar:
    """Return the mean squared error of the model's denoised sample, without a weighting.

    The noisy sample is alpha data + sigma noise. In expectation over data and noise the loss is
    smallest for the denoiser E[data | x], whose score is that of p_t. It serves every
    parametrization and every path.

    Args:
        model: the model.
        t: time on the model's path.
        data: one clean sample, `shape`.
        noise: standard normal noise, `shape`.
        cond: condition of the network, such as a label.

    Returns:
        The squared error, averaged over the elements of the sample.
    """
    c = coefficients(model.path, t)
    x0 = denoise(model, t, c.alpha * data + c.sigma * noise, cond)
    return jnp.mean((x0 - data) ** 2)
