r"""Guides: pure transforms (drift, local) -> drift, folded left to right.

If u transports p_t and the sampler follows any drift v, then along its path

    d log p_t(x_t)/dt = -div u + <v - u, s>                                            (A)

Estimation reads (A) left to right; guidance solves it for v. The drift closest to an incoming v
at which the log-density changes at rate b is v + (b + div u - <v - u, s>) s/|s|^2. In terms of
the weight eta on the score this is v's own part off the score plus f x - g^2/2 eta s, with

    d log p_t/dt = -div u + g^2/2 (1 - eta) |s|^2,    eta = 1 the PF-ODE.

Guides are data: frozen dataclasses whose numbers are array leaves, so sweeping a number re-uses
one compilation, `vmap` sweeps it and `grad` goes through it. Those that fix the rate (density
guidance, targets) discard what came before along the score, so they come last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.tree_util import Partial, all_leaves
from jaxtyping import ArrayLike

from dgjax.guidance.schedules import Schedule, schedule
from dgjax.model.field import Field, Local
from dgjax.model.paths import logsnr
from dgjax.typing import Sample, Scalar, as_float, concrete, inner, register_dataclass

__all__ = [
    "DensityGuidance",
    "Guide",
    "HasTarget",
    "HighDensity",
    "RateGuidance",
    "SteersScore",
    "apply_guides",
    "density_guidance",
    "density_guidance_nats",
    "forcing_nats",
    "high_density",
    "quantile_of_forcing",
    "rate_guidance",
    "score_weight",
    "with_score_weight",
]


class Guide(Protocol):
    """A transform of the drift; `local` is read-only context."""

    def __call__(self, drift: Sample, local: Local) -> Sample:
        """The guided drift."""
        ...


@runtime_checkable
class SteersScore(Protocol):
    """A guide that sets the score weight eta, within bounds that it may have to stop at."""

    def excess(self, local: Local) -> Scalar:
        """How far eta is from its nearest allowed value; 0 where the bound does not act."""
        ...


@runtime_checkable
class HasTarget(Protocol):
    """A guide that asks for a log-density at t_min."""

    def met(self, log_density: Scalar, size: int) -> Scalar:
        """Whether `log_density` nats is near enough to the target."""
        ...


def apply_guides(guides: Sequence[Guide], local: Local) -> Sample:
    """The drift after all guides, starting from the velocity."""
    drift = local.velocity
    for guide in guides:
        drift = guide(drift, local)
    return drift


def score_weight(drift: Sample, local: Local) -> Scalar:
    """The eta at which `with_score_weight` comes closest to `drift`: 1 for the flow itself."""
    steered = drift - local.velocity
    return 1 - 2 * (inner(steered, local.score) / local.score_norm2) / local.g2


def with_score_weight(drift: Sample, local: Local, eta: Scalar) -> Sample:
    """`drift` with its part along the score set to that of f x - g^2/2 eta s."""
    along = inner(drift - local.velocity, local.score) / local.score_norm2
    return drift + (0.5 * local.g2 * (1 - eta) - along) * local.score


@register_dataclass
@dataclass(frozen=True)
class DensityGuidance:
    r"""eta = 1 + sqrt(2D) probit / |sigma s|^2, kept in [1 - bound, 1 + bound].

    The rate of [DG] eq. 17, b = -div u - g^2/2 sqrt(2D)/sigma^2 Phi^-1(q), in which the
    divergence cancels. Made by `density_guidance` or `density_guidance_nats`; `probit` is
    Phi^-1(q), a schedule in log-SNR.
    """

    probit: Schedule
    bound: Scalar

    def _raw(self, local: Local) -> Scalar:
        forcing = jnp.sqrt(jnp.asarray(2.0 * local.x.size, local.x.dtype))
        return forcing * self.probit(local.logsnr) / (local.sigma**2 * local.score_norm2)

    def __call__(self, drift: Sample, local: Local) -> Sample:
        eta = 1 + jnp.clip(self._raw(local), -self.bound, self.bound)
        return with_score_weight(drift, local, eta)

    def excess(self, local: Local) -> Scalar:
        return jnp.maximum(jnp.abs(self._raw(local)) - self.bound, 0)


def density_guidance(
    q: ArrayLike, *, knots: ArrayLike | None = None, bound: ArrayLike = 1.0
) -> DensityGuidance:
    """Density guidance at quantile q of the rate of log p_t; q > 1/2 raises log-density.

    Args:
        q: in (0, 1), or (n,) values at `knots`, linear in Phi^-1(q) between them.
        knots: (n,) increasing log-SNRs.
        bound: the score weight eta stays within 1 +- bound; `jnp.inf` is the published rule.

    Raises:
        ValueError: if q is outside (0, 1), or knots and q do not match.
    """
    q = as_float(q)
    numbers = concrete(q)
    if numbers is not None and not ((numbers > 0) & (numbers < 1)).all():
        raise ValueError(f"q must lie strictly between 0 and 1, got {numbers}")
    return DensityGuidance(schedule(ndtri(q), knots), as_float(bound))


def density_guidance_nats(
    nats: ArrayLike, model: Field, size: int, *, bound: ArrayLike = 1.0
) -> DensityGuidance:
    """Density guidance by what it forces over the model's whole log-SNR range, in nats.

    Args:
        nats: log-density forced on top of the PF-ODE's own rate.
        model: whose noise range it is spread over.
        size: number of elements D of one sample.
    """
    probit = as_float(nats) / forcing_nats(model, size)
    return DensityGuidance(schedule(probit), as_float(bound))


def forcing_nats(model: Field, size: int) -> Scalar:
    """Nats forced per unit of Phi^-1(q): sqrt(2D)/2 times the model's log-SNR range."""
    span = logsnr(model.path, model.t_min) - logsnr(model.path, model.t_max)
    return 0.5 * jnp.sqrt(as_float(2 * size)) * span


def quantile_of_forcing(nats: ArrayLike, model: Field, size: int) -> Scalar:
    """The dial q that forces `nats` over the model's noise range."""
    return ndtr(as_float(nats) / forcing_nats(model, size))


@register_dataclass
@dataclass(frozen=True)
class RateGuidance:
    """The drift closest to the incoming one at which d log p_t/d logsnr = rate(local), in nats.

    Made by `rate_guidance`. Uses the divergence.
    """

    rate: Callable[[Local], Scalar]
    bound: Scalar

    def _raw(self, local: Local) -> Scalar:
        # b = rate dlogsnr/dt and g^2 = -sigma^2 dlogsnr/dt, so that
        # eta - 1 = -2 (b + div u)/(g^2 |s|^2) is finite wherever g^2 is.
        per_time = -self.rate(local) * local.g2 / local.sigma**2
        return -2 * (per_time + local.divergence) / (local.g2 * local.score_norm2)

    def __call__(self, drift: Sample, local: Local) -> Sample:
        eta = 1 + jnp.clip(self._raw(local), -self.bound, self.bound)
        return with_score_weight(drift, local, eta)

    def excess(self, local: Local) -> Scalar:
        return jnp.maximum(jnp.abs(self._raw(local)) - self.bound, 0)


def rate_guidance(
    rate: ArrayLike | Schedule | Callable[[Local], Scalar], *, bound: ArrayLike = jnp.inf
) -> RateGuidance:
    """Density guidance for a rate of your own, [DG] eq. 14: d log p_t/d logsnr in nats.

    Args:
        rate: a number, a `Schedule` in log-SNR, or a callable of the `Local` (a pytree, or a
            plain function, taken as static).
        bound: the score weight eta stays within 1 +- bound.
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
    values: Schedule

    def __call__(self, local: Local) -> Scalar:
        return self.values(local.logsnr)


@register_dataclass
@dataclass(frozen=True)
class HighDensity:
    """The high-density sampler of [HD]: score weight doubled nearer the data than `threshold`.

    Made by `high_density`.
    """

    threshold: Scalar

    def __call__(self, drift: Sample, local: Local) -> Sample:
        extra = jnp.where(local.logsnr > self.threshold, 0.5 * local.g2, 0.0)
        return drift - extra * local.score


def high_density(threshold: ArrayLike) -> HighDensity:
    """v = f x - g^2 s once the log-SNR exceeds `threshold`, the PF-ODE before.

    The drift jumps at the threshold, which costs every solver its order, and with few steps digits
    of the log-density. Two solves, to the threshold and from there with the log-density found, have
    no jump inside.
    """
    return HighDensity(as_float(threshold))
