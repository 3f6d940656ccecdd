"""The high-density sampler of Diffusion Models as Cartoonists (arXiv 2411.01293)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import ArrayLike

from dgjax.model.local import Local
from dgjax.typing import Sample, Scalar, as_float, register_dataclass

__all__ = ["HighDensity", "high_density"]


@register_dataclass
@dataclass(frozen=True)
class HighDensity:
    """Add -g^2/2 s to the drift once the log-SNR exceeds `threshold`. Made by `high_density`.

    Attributes:
        threshold: a log-SNR.
    """

    threshold: Scalar

    def __call__(self, drift: Sample, local: Local) -> Sample:
        """Return the guided drift."""
        extra = jnp.where(local.logsnr > self.threshold, 0.5 * local.g2, 0.0)
        return drift - extra * local.score


def high_density(threshold: ArrayLike) -> HighDensity:
    """Make a guide that doubles the score once the log-SNR exceeds `threshold`.

    The drift is f x - g^2/2 s (the probability-flow ODE) up to the threshold and f x - g^2 s
    beyond it (Cartoonists, arXiv 2411.01293).

    The drift jumps at the threshold. Every solver loses its order there, and with few steps the
    log-density loses digits. To avoid a jump inside a solve, make two: one to the threshold, and
    one from there that starts with the log-density found by the first.

    Args:
        threshold: a log-SNR.

    Returns:
        A guide.
    """
    return HighDensity(as_float(threshold))
