"""Temperature: multiply the guided score by a number that depends on the noise level."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from dgjax.guidance.schedules import Window, window
from dgjax.model.faults import finite, require
from dgjax.model.local import Local
from dgjax.typing import Sample, Scalar, as_float, register_dataclass

__all__ = ["Temperature", "temperature"]


@register_dataclass
@dataclass(frozen=True)
class Temperature:
    """Replace the drift v by f x + r (v - f x) inside an interval. Made by `temperature`.

    The factor is r = (1 + w^2/scale^2)/(T + w^2/scale^2) with w = sigma/alpha.

    Attributes:
        T: the temperature.
        scale: standard deviation of the data, or of its parts.
        interval: 1 at the log-SNRs where the guide acts, 0 elsewhere.
    """

    T: Scalar
    scale: Array
    interval: Window

    def __call__(self, drift: Sample, local: Local) -> Sample:
        """Return the guided drift."""
        noise = (local.sigma / (local.alpha * self.scale)) ** 2
        extra = self.interval(local.logsnr) * (1 - self.T) / (self.T + noise)  # r - 1
        # f x is singular where alpha vanishes, while u - f x = -g^2/2 s is not.
        beyond = (drift - local.velocity) - 0.5 * local.g2 * local.score
        return drift + extra * beyond


def temperature(
    T: ArrayLike,
    *,
    scale: ArrayLike,
    low: ArrayLike = -jnp.inf,
    high: ArrayLike = jnp.inf,
) -> Temperature:
    """Make a guide that samples approximately from p^(1/T).

    T < 1 gives sharper samples, T > 1 flatter ones, and T = 1 changes nothing. The score is
    multiplied by (alpha^2 scale^2 + sigma^2)/(alpha^2 scale^2 T + sigma^2): temporal score
    rescaling (Xu et al. 2025, arXiv 2510.01184). With `scale` 1 it is the form of Ingraham et al.
    2023 (doi 10.1038/s41586-023-06728-8).

    The rule is exact for data of covariance scale^2 I: samples then have covariance T scale^2 I.
    For other data it is a heuristic. It is close to exact if the data have well separated parts,
    each of standard deviation `scale`.

    The guide multiplies all guidance that it receives. Put it after `classifier_free_guidance` to
    apply the temperature to the guided score, and before it to apply the temperature to the
    model's own score only. Density guidance after it removes its effect: a temperature changes
    only the component along the score.

    Args:
        T: the temperature, positive.
        scale: standard deviation of the data, or of its parts. `jnp.inf` divides the score by T
            at every noise level.
        low: smallest log-SNR at which the guide acts.
        high: log-SNR at which the guide ends: it acts while `low` <= log-SNR < `high`.

    Returns:
        A guide.

    Raises:
        ValueError: if T is not positive and finite, `scale` is not positive, or `low` >= `high`.
    """
    T = require("T", as_float(T), "be positive and finite", lambda T: (T > 0) & finite(T))
    scale = require(
        "scale",
        as_float(scale),
        "be positive",
        lambda scale: scale > 0,
        fix="jnp.inf divides the score by T at every noise level",
    )
    return Temperature(T, scale, window(low=low, high=high))
