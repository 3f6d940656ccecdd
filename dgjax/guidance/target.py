"""A guide that steers the tracked log-density to a target, along the course of a pilot run."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgjax.guidance.density import with_score_weight
from dgjax.model.field import Field, Local
from dgjax.typing import Sample, Scalar, as_float, concrete, register_dataclass

__all__ = ["Profile", "TargetGuidance", "target_guidance"]


@register_dataclass
@dataclass(frozen=True)
class Profile:
    """A pilot's course at q = 1/2, by log-SNR. Made by `targets.pilot`.

    `ahead` is the log-density (of x/alpha) still to be gained, `curvature` is
    -sigma^2 Lap log p; both averaged over the pilot's trajectories.
    """

    knots: Float[Array, " n"]
    ahead: Float[Array, " n"]
    curvature: Float[Array, " n"]


@register_dataclass
@dataclass(frozen=True)
class TargetGuidance:
    r"""Closed loop to a target log-density at t_min. Made by `target_guidance`.

    With n_L = -sigma^2 Lap log p, n_S = |sigma s|^2, l the tracked log-density and R the gain
    that the pilot still had ahead here, scaled by n_L over the pilot's,

        eta = 1 + clip(2 (c - l - R)/R n_L/n_S, -bound, bound).

    Both l and c are taken of y = x/alpha, whose log-density has no volume term.
    """

    target: Scalar
    profile: Profile
    alpha_end: Scalar
    bound: Scalar
    tolerance: Scalar

    def _raw(self, local: Local) -> Scalar:
        size = local.x.size
        pilot = jnp.interp(local.logsnr, self.profile.knots, self.profile.curvature)
        ahead = jnp.interp(local.logsnr, self.profile.knots, self.profile.ahead)
        curvature = -(local.sigma**2) * local.laplacian
        here = local.log_density + size * jnp.log(local.alpha)
        goal = self.target + size * jnp.log(self.alpha_end)
        missing = goal - here - ahead * curvature / pilot
        # Nothing is ahead at t_min itself: over the pilot's last step the gain stays what it was,
        # which a solver can follow, and what is still missing there is small.
        least = jnp.abs(self.profile.ahead[-2])
        ahead = jnp.where(jnp.abs(ahead) < least, jnp.copysign(least, ahead), ahead)
        return 2 * missing * pilot / (ahead * local.sigma**2 * local.score_norm2)

    def __call__(self, drift: Sample, local: Local) -> Sample:
        eta = 1 + jnp.clip(self._raw(local), -self.bound, self.bound)
        return with_score_weight(drift, local, eta)

    def excess(self, local: Local) -> Scalar:
        return jnp.maximum(jnp.abs(self._raw(local)) - self.bound, 0)

    def met(self, log_density: Scalar, size: int) -> Scalar:
        """Whether the log-density reached at t_min is the one asked for."""
        return jnp.abs(log_density - self.target) <= self.tolerance * size


def target_guidance(
    target: ArrayLike,
    model: Field,
    profile: Profile,
    *,
    bound: ArrayLike = 1.0,
    tolerance: ArrayLike = 0.01,
) -> TargetGuidance:
    """Steers the tracked log p to `target` nats at the model's t_min.

    Args:
        target: log-density asked for, in nats.
        model: the field that will be sampled.
        profile: from `pilot`, on the same path.
        bound: the score weight eta stays within 1 +- bound; targets beyond it are not met.
        tolerance: nats per dimension within which the target counts as met.

    Raises:
        ValueError: if the target is not finite.
    """
    target = as_float(target)
    numbers = concrete(target)
    if numbers is not None and not np.isfinite(numbers).all():
        raise ValueError(f"target must be finite nats, got {numbers}")
    alpha_end = model.path.alpha(model.t_min)
    return TargetGuidance(target, profile, alpha_end, as_float(bound), as_float(tolerance))
