r"""Guides that strengthen the score: by contrast with a second model, or by a temperature.

Classifier-free guidance and autoguidance extrapolate from a second score s' through the model's
own score s, and temperature multiplies the score by r:

    v <- v - g^2/2 (weight - 1)(s - s'),        v <- f x + r (v - f x).

What they follow is no longer the velocity of any p_t, so they change the drift only. The tracked
log-density stays, by (A), that of the model being sampled: where `sample` is given a condition,
log p_t(x | cond), and never the density of where guided samples fall. Put these guides before
those that fix the rate (density guidance, targets), which keep of them what lies across the
score: of a temperature alone nothing.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from dgjax.guidance.schedules import Schedule, Window, schedule, window
from dgjax.model.field import Conditioned, Field, Local, condition
from dgjax.typing import Cond, Sample, Scalar, as_float, concrete, register_dataclass

__all__ = [
    "Contrast",
    "Temperature",
    "autoguidance",
    "classifier_free_guidance",
    "temperature",
]


@register_dataclass
@dataclass(frozen=True)
class Contrast:
    """v - g^2/2 (weight - 1)(s - s') inside the interval, s' the score of `other`.

    Made by `classifier_free_guidance` or `autoguidance`. `other` may live on any path: it is asked
    at equal log-SNR, where two paths differ by the scale of x alone. One more pass of a network
    inside the interval, none outside, and no divergence.
    """

    other: Field
    weight: Schedule
    interval: Window

    def _score(self, local: Local) -> Sample:
        t = self.other.path.time(local.logsnr)
        x = local.x * (self.other.path.alpha(t) / local.alpha)
        return -self.other.pair(t, x).eps / local.sigma

    def __call__(self, drift: Sample, local: Local) -> Sample:
        def guided(drift: Sample) -> Sample:
            strength = 0.5 * local.g2 * (self.weight(local.logsnr) - 1)
            return drift - strength * (local.score - self._score(local))

        # Latents that share their times (and their interval) share the branch, also under vmap:
        # outside the interval the second network does not run.
        return jax.lax.cond(self.interval(local.logsnr) > 0, guided, lambda drift: drift, drift)


def classifier_free_guidance(
    weight: ArrayLike | Schedule,
    model: Field,
    *,
    null: Cond = None,
    low: ArrayLike = -jnp.inf,
    high: ArrayLike = jnp.inf,
) -> Contrast:
    """Away from the unconditional model (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    The guided score is weight s(x | cond) + (1 - weight) s(x): weight 1 is no guidance, and the
    paper's w is weight - 1. Restricting it to some noise levels is Kynkaanniemi et al. 2024
    (arXiv 2404.07724), whose interval (sigma_lo, sigma_hi] is `low` = -2 log sigma_hi and `high` =
    -2 log sigma_lo. Pass the condition to `sample`: the log-density tracked is log p(x | cond).

    Args:
        weight: a number or a `Schedule` in log-SNR.
        model: the field being sampled, before any `condition`.
        null: the condition that stands for none.
        low, high: it acts while `low` <= log-SNR < `high`. Edges on grid points cost least.

    Raises:
        ValueError: if the weight is not finite, low >= high, or `model` has a condition already.
    """
    if null is None and isinstance(model.network, Conditioned):
        raise ValueError(
            "this model has a condition already, so that nothing would stand against it: pass the "
            "model before condition, and the condition to sample"
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
    """Away from a weaker model (Karras et al. 2024, arXiv 2406.02507).

    The guided score is weight s + (1 - weight) s'; weight 1 is no guidance. `other` is a smaller
    or less trained model of the same data and shape, on any path.

    Args:
        weight: a number or a `Schedule` in log-SNR.
        other: the weaker field; its noise range should cover the interval.
        cond: what it is conditioned on, usually what `sample` is given as well.
        low, high: it acts while `low` <= log-SNR < `high`. Edges on grid points cost least.

    Raises:
        ValueError: if the weight is not finite or low >= high.
    """
    weight = schedule(weight)
    _check("weight", weight.values, "finite", np.isfinite)
    cond = jax.tree.map(jnp.asarray, cond)  # a Python number would trace anew
    return Contrast(condition(other, cond), weight, window(low=low, high=high))


@register_dataclass
@dataclass(frozen=True)
class Temperature:
    """f x + r (v - f x), r = (1 + w^2/scale^2)/(T + w^2/scale^2) with w = sigma/alpha.

    Made by `temperature`.
    """

    T: Scalar
    scale: Array
    interval: Window

    def __call__(self, drift: Sample, local: Local) -> Sample:
        noise = (local.sigma / (local.alpha * self.scale)) ** 2
        extra = self.interval(local.logsnr) * (1 - self.T) / (self.T + noise)  # r - 1
        # f x itself is singular where alpha vanishes; u - f x = -g^2/2 s is not.
        beyond = (drift - local.velocity) - 0.5 * local.g2 * local.score
        return drift + extra * beyond


def temperature(
    T: ArrayLike,
    *,
    scale: ArrayLike,
    low: ArrayLike = -jnp.inf,
    high: ArrayLike = jnp.inf,
) -> Temperature:
    """Samples as if from p^(1/T): T < 1 sharper, T > 1 flatter, 1 leaves everything as it is.

    Temporal score rescaling (Xu et al. 2025, arXiv 2510.01184; with `scale` 1 the form of
    Ingraham et al. 2023, doi 10.1038/s41586-023-06728-8): the score is multiplied by
    (alpha^2 scale^2 + sigma^2)/(alpha^2 scale^2 T + sigma^2). It is exact for data of covariance
    scale^2 I, whose samples then have covariance T scale^2 I; elsewhere it is a heuristic, and
    close to it for parts of the data that are as wide as `scale` and far apart.

    It multiplies the whole of the guidance that it receives: after `classifier_free_guidance` it
    is the temperature of the guided score, before it that of the model's own.

    Args:
        T: the temperature.
        scale: standard deviation of the data, or of its parts; `jnp.inf` divides the score by T
            at every noise level.
        low, high: it acts while `low` <= log-SNR < `high`.

    Raises:
        ValueError: if T is not positive and finite, scale not positive, or low >= high.
    """
    T, scale = as_float(T), as_float(scale)
    _check("T", T, "positive and finite", lambda n: (n > 0) & np.isfinite(n))
    _check("scale", scale, "positive (jnp.inf divides the score by T)", lambda n: n > 0)
    return Temperature(T, scale, window(low=low, high=high))


def _check(name: str, value: Array, wanted: str, holds) -> None:
    numbers = concrete(value)
    if numbers is not None and not np.all(holds(numbers)):
        raise ValueError(f"{name} must be {wanted}, got {numbers}")
