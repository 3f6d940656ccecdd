"""Density guidance with a rate given by the user (arXiv 2502.05807, eq. 14)."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax.tree_util import Partial, all_leaves
from jaxtyping import ArrayLike

from dgjax.guidance.guide import ScoreWeightGuide
from dgjax.guidance.schedules import Schedule, schedule
from dgjax.model.local import Local
from dgjax.typing import Scalar, as_float, register_dataclass

__all__ = ["RateGuidance", "rate_guidance"]


@register_dataclass
@dataclass(frozen=True)
class RateGuidance(ScoreWeightGuide):
    """Make log p_t change at d log p_t/d logsnr = rate(local), in nats.

    The guided drift is the one closest to the incoming drift that has this rate. The guide reads
    the divergence. Made by `rate_guidance`.

    Attributes:
        rate: maps a `Local` to nats per unit of log-SNR.
        bound: the score weight eta stays in [1 - bound, 1 + bound].
    """

    rate: Callable[[Local], Scalar]
    bound: Scalar

    def weight_change(self, local: Local) -> Scalar:
        """Return eta - 1 before the bound is applied."""
        # b = rate dlogsnr/dt and g^2 = -sigma^2 dlogsnr/dt, so that
        # eta - 1 = -2 (b + div u)/(g^2 |s|^2) is finite wherever g^2 is.
        per_time = -self.rate(local) * local.g2 / local.sigma**2
        return -2 * (per_time + local.divergence) / (local.g2 * local.score_norm2)


def rate_guidance(
    rate: ArrayLike | Schedule | Callable[[Local], Scalar], *, bound: ArrayLike = jnp.inf
) -> RateGuidance:
    """Make a guide along which log p_t changes at a rate of your choice.

    The drift is v + (b + div u - <v - u, s>) s/|s|^2 with b = rate d logsnr/dt (Density Guidance,
    arXiv 2502.05807, eq. 14, for any incoming drift v).

    Args:
        rate: d log p_t/d logsnr in nats: a number, a `Schedule` in log-SNR, or a function of the
            `Local`. A function that is a pytree brings its numbers as leaves; a plain function is
            static.
        bound: the score weight eta stays in [1 - bound, 1 + bound].

    Returns:
        A guide. Put it last: it keeps only the component of earlier guidance that is
        perpendicular to the score.
    """
    if not callable(rate):
        rate = schedule(rate)
    if isinstance(rate, Schedule):
        rate = _OfLogsnr(rate)
    elif all_leaves([rate]):
        rate = Partial(rate)
    return RateGuidance(rate, as_float(bound))


@register_dataclass
@dataclass(frozen=True)
class _OfLogsnr:
    """A schedule read at the log-SNR of a `Local`."""

    values: Schedule

    def __call__(self, local: Local) -> Scalar:
        return self.values(local.logsnr)
