r"""Classifier-free guidance and autoguidance: extrapolate away from a second score.

With the model's score s and a second score s' the drift changes by

    v <- v - g^2/2 (weight - 1)(s - s').

The guided score is not the score of any p_t. So these guides change the drift only. The tracked
log-density remains that of the model being sampled, by identity (A) of `dgjax.guidance.guide`: with
a condition it is log p_t(x | cond). It is not the log-density of the distribution of the guided
samples.

Put these guides before density guidance and targets. Those keep only the component of earlier
guidance that is perpendicular to the score.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from dgjax.guidance.schedules import Schedule, Window, schedule, window
from dgjax.model.conditioned import Conditioned, condition
from dgjax.model.faults import finite, require
from dgjax.model.field import Field
from dgjax.model.local import Local
from dgjax.typing import Cond, Sample, register_dataclass

__all__ = ["Contrast", "autoguidance", "classifier_free_guidance"]


@register_dataclass
@dataclass(frozen=True)
class Contrast:
    """Add -g^2/2 (weight - 1)(s - s') to the drift inside an interval; s' is the score of `other`.

    Made by `classifier_free_guidance` or `autoguidance`. It costs one more pass of a network
    inside the interval, none outside, and no Jacobian product. `other` may be on any path: it is
    evaluated at equal log-SNR, where two paths differ only in the scale of x.

    Attributes:
        other: the model to move away from.
        weight: a schedule in log-SNR; 1 is no guidance.
        interval: positive at the log-SNRs where the guide acts, 0 elsewhere.
    """

    other: Field
    weight: Schedule
    interval: Window

    def _score(self, local: Local) -> Sample:
        """Return the score of `other`, in the coordinates of `local`."""
        t = self.other.path.time(local.logsnr)
        x = local.x * (self.other.path.alpha(t) / local.alpha)
        # eps is the same on every path. `score` would divide by sigma of the other path.
        return -self.other.pair(t, x).eps / local.sigma

    def __call__(self, drift: Sample, local: Local) -> Sample:
        """Return the guided drift."""

        def guided(drift: Sample) -> Sample:
            strength = 0.5 * local.g2 * (self.weight(local.logsnr) - 1)
            return drift - strength * (local.score - self._score(local))

        # Under vmap over samples with one common time the predicate is not batched, so `cond`
        # does not become a `select`: outside the interval the second network does not run.
        return jax.lax.cond(self.interval(local.logsnr) > 0, guided, lambda drift: drift, drift)


def classifier_free_guidance(
    weight: ArrayLike | Schedule,
    model: Field,
    *,
    null: Cond = None,
    low: ArrayLike = -jnp.inf,
    high: ArrayLike = jnp.inf,
) -> Contrast:
    """Make a guide that strengthens the condition (classifier-free guidance).

    The guided score is weight s(x | cond) + (1 - weight) s(x) (Ho and Salimans 2022, arXiv
    2207.12598, eq. 6, whose w is weight - 1). Weight 1 is no guidance. `low` and `high` restrict
    the guide to some noise levels (Kynkaanniemi et al. 2024, arXiv 2404.07724): the interval
    (sigma_lo, sigma_hi] of that paper is `low` = -2 log sigma_hi and `high` = -2 log sigma_lo.

    Pass the condition to `sample`. The tracked log-density is then log p(x | cond).

    Args:
        weight: a number or a `Schedule` in log-SNR.
        model: the field being sampled, before any `condition`.
        null: the condition that the network takes as no condition.
        low: smallest log-SNR at which the guide acts.
        high: log-SNR at which the guide ends: it acts while `low` <= log-SNR < `high`. A solver
            loses least accuracy if both edges are grid points.

    Returns:
        A guide.

    Raises:
        ValueError: if the weight is not finite, `low` >= `high`, or `model` already has a
            condition and `null` is None.
    """
    if null is None and isinstance(model.network, Conditioned):
        raise ValueError(
            "this model has a condition already, so both scores would be the conditional one; "
            "pass the model from before `condition`, and pass the condition to `sample`"
        )
    return autoguidance(weight, model, cond=null, low=low, high=high)


def autoguidance(
    weight: ArrayLike | Schedule,
    other: Field,
    *,
    cond: Cond = None,
    low: ArrayLike = -jnp.inf,
    high: ArrayLike = jnp.inf,
) -> Contrast:
    """Make a guide away from a weaker model (Karras et al. 2024, arXiv 2406.02507).

    The guided score is weight s + (1 - weight) s' with the score s' of `other`. Weight 1 is no
    guidance.

    Args:
        weight: a number or a `Schedule` in log-SNR.
        other: a smaller or less trained model of the same data and shape, on any path. Its noise
            range should cover the interval.
        cond: the condition of `other`, usually the one given to `sample`.
        low: smallest log-SNR at which the guide acts.
        high: log-SNR at which the guide ends: it acts while `low` <= log-SNR < `high`. A solver
            loses least accuracy if both edges are grid points.

    Returns:
        A guide.

    Raises:
        ValueError: if the weight is not finite or `low` >= `high`.
    """
    weight = schedule(weight)
    values = require("weight", weight.values, "be finite", finite)
    cond = jax.tree.map(jnp.asarray, cond)  # a Python number would cause a new trace
    weight = Schedule(weight.knots, values)
    return Contrast(condition(other, cond), weight, window(low=low, high=high))
