"""Density guidance (arXiv 2502.05807): follow a quantile of the rate of log p_t.

Under p_t the number h = sigma^2 (Lap log p_t + |s|^2)/sqrt(2 D) is nearly standard normal when the
dimension D and the noise are large. Density guidance keeps h at its quantile q. The log-density
then changes at the rate b = -div u - g^2/2 sqrt(2 D)/sigma^2 Phi^-1(q) (eq. 17). The divergence
cancels in the guided drift, so the guide needs no Jacobian product.

A part of the sample is a symmetric M with 0 <= M <= 1. The drift u - g^2/2 (eta - 1) M s changes
the weight of the score in that part only, and the log-density of the whole sample by exactly
-g^2/2 (eta - 1) <s, M s> more than along u. In place of D stands tr M^2: where the noise is
large, sigma^2 tr(M (grad^2 log p_t + s s^T)) has the variance 2 tr M^2.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import ArrayLike
from scipy import special

from dgjax.guidance.guide import ScoreWeightGuide
from dgjax.guidance.parts import Part
from dgjax.guidance.schedules import Schedule, schedule
from dgjax.model.faults import require
from dgjax.model.field import Field
from dgjax.model.local import Local
from dgjax.model.paths import logsnr
from dgjax.typing import (
    Sample,
    Scalar,
    as_float,
    concrete,
    inner,
    register_dataclass,
    short_repr,
)

__all__ = ["DensityGuidance", "density_guidance", "density_guidance_nats", "forcing_nats"]


@register_dataclass
@dataclass(frozen=True, repr=False)
class DensityGuidance(ScoreWeightGuide):
    """Set the score weight eta = 1 + sqrt(2 D) probit / |sigma s|^2, within 1 +- bound.

    In a part M it is 1 + sqrt(2 tr M^2) probit / (sigma^2 <s, M s>), and 1 elsewhere.

    Made by `density_guidance` or `density_guidance_nats`.

    Attributes:
        probit: Phi^-1(q) as a schedule in log-SNR.
        bound: eta stays in [1 - bound, 1 + bound].
        part: M, the part of the sample that is guided; None for all of it.
    """

    probit: Schedule
    bound: Scalar
    part: Part | None = None

    def __repr__(self) -> str:
        """Return a line with the quantile q, by value where it is one number."""
        q: Any = self.probit
        if isinstance(q, Schedule) and isinstance(q.values, jax.Array | np.ndarray):
            probits = concrete(q.values)
            q = q.values if probits is None else np.squeeze(special.ndtr(probits))
        part = "" if self.part is None else f", part={self.part!r}"
        return f"DensityGuidance(q={short_repr(q)}, bound={short_repr(self.bound)}{part})"

    def direction(self, local: Local) -> Sample:
        """Return M s."""
        score = super().direction(local)
        return score if self.part is None else self.part(score)

    def weight_change(self, local: Local) -> Scalar:
        """Return eta - 1 before the bound is applied."""
        size: ArrayLike = local.x.size
        norm2 = local.score_norm2
        if self.part is not None:
            size = self.part.trace_of_square(local.x)
            norm2 = inner(local.nonzero_score, self.direction(local))
        forcing = jnp.sqrt(jnp.asarray(2.0 * size, local.x.dtype))
        return forcing * self.probit(local.logsnr) / (local.sigma**2 * norm2)


def density_guidance(
    q: ArrayLike,
    *,
    knots: ArrayLike | None = None,
    bound: ArrayLike = 1.0,
    part: Part | None = None,
) -> DensityGuidance:
    """Make a guide that raises (q > 1/2) or lowers (q < 1/2) the log-density of the sample.

    The drift is f x - g^2/2 eta s with eta = 1 + sqrt(2 D) Phi^-1(q)/|sigma s|^2 (Density
    Guidance, arXiv 2502.05807, eq. 17). q = 1/2 is the probability-flow ODE. q is the quantile
    at which a statistic of the rate of log p_t is kept, not one of the final log-density.

    Args:
        q: a number in (0, 1), or `(n,)` values at `knots` with Phi^-1(q) linear in between.
        knots: `(n,)` increasing log-SNRs.
        bound: eta stays in [1 - bound, 1 + bound]. `jnp.inf` gives the published rule.
        part: what is guided, such as `region(mask)` or `band(shape, low=0.1)`; None for the whole
            sample. The rest still moves, since the network couples it to the part: `hold` keeps it.

    Returns:
        A guide. Put it last: it keeps only the component of earlier guidance that is
        perpendicular to the score.

    Raises:
        ValueError: if q is outside (0, 1), or `knots` and q do not match.
    """
    q = require("q", as_float(q), "lie strictly between 0 and 1", lambda q: (q > 0) & (q < 1))
    return DensityGuidance(schedule(ndtri(q), knots), as_float(bound), part)


def density_guidance_nats(
    nats: ArrayLike, model: Field, size: int, *, bound: ArrayLike = 1.0
) -> DensityGuidance:
    """Make the density guidance that forces `nats` over the whole log-SNR range of the model.

    The same guide as `density_guidance(q)` with Phi^-1(q) = nats / `forcing_nats(model, size)`.

    Args:
        nats: log-density to add to what the probability-flow ODE gains by itself, in nats.
            Negative values lower the log-density.
        model: the field that will be sampled.
        size: number of elements D of one sample.
        bound: the score weight eta stays in [1 - bound, 1 + bound]. Where the bound acts, fewer
            nats are forced.

    Returns:
        A guide. Put it last.
    """
    probit = as_float(nats) / forcing_nats(model, size)
    return DensityGuidance(schedule(probit), as_float(bound))


def forcing_nats(model: Field, size: int) -> Scalar:
    """Return the nats that density guidance forces per unit of Phi^-1(q).

    The number is sqrt(2 D)/2 times the log-SNR range of the model: the integral over log-SNR of
    the forced rate.

    Args:
        model: the field that will be sampled.
        size: number of elements D of one sample.
    """
    span = logsnr(model.path, model.t_min) - logsnr(model.path, model.t_max)
    return 0.5 * jnp.sqrt(as_float(2 * size)) * span
