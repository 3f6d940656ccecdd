"""Guidance to a target log-density, in a closed loop with the tracked log-density."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgjax.guidance.guide import ScoreWeightGuide
from dgjax.model.faults import finite, require
from dgjax.model.field import Field
from dgjax.model.local import Local
from dgjax.typing import Scalar, as_float, register_dataclass

__all__ = ["Profile", "TargetGuidance", "target_guidance"]


@register_dataclass
@dataclass(frozen=True)
class Profile:
    """Averages over the trajectories of an unguided pilot run. Made by `pilot`.

    Attributes:
        knots: `(n,)` increasing log-SNRs.
        ahead: `(n,)` gain in the log-density of x/alpha from each knot to t_min, in nats.
        curvature: `(n,)` values of -sigma^2 Lap log p.
    """

    knots: Float[Array, " n"]
    ahead: Float[Array, " n"]
    curvature: Float[Array, " n"]


@register_dataclass
@dataclass(frozen=True)
class TargetGuidance(ScoreWeightGuide):
    r"""Steer the tracked log-density to `target` at t_min. Made by `target_guidance`.

    Let l be the tracked log-density, c the target, n_L = -sigma^2 Lap log p and n_S = |sigma s|^2
    at the current point. R is the gain still expected: the pilot run's gain from here to t_min,
    times n_L over the pilot run's n_L. The score weight is

        eta = 1 + clip(2 (c - l - R)/R n_L/n_S, -bound, bound).

    Here l and c are log-densities of y = x/alpha, so no change of volume by alpha enters.

    Attributes:
        target: log-density asked for at t_min, in nats.
        profile: averages over a pilot run.
        alpha_end: alpha at t_min.
        bound: eta stays in [1 - bound, 1 + bound].
        tolerance: nats per dimension within which the target counts as met.
    """

    target: Scalar
    profile: Profile
    alpha_end: Scalar
    bound: Scalar
    tolerance: Scalar

    def weight_change(self, local: Local) -> Scalar:
        """Return eta - 1 before the bound is applied."""
        size = local.x.size
        pilot = jnp.interp(local.logsnr, self.profile.knots, self.profile.curvature)
        ahead = jnp.interp(local.logsnr, self.profile.knots, self.profile.ahead)
        curvature = -(local.sigma**2) * local.laplacian
        here = local.log_density + size * jnp.log(local.alpha)
        goal = self.target + size * jnp.log(self.alpha_end)
        missing = goal - here - ahead * curvature / pilot
        # At t_min the expected gain is 0 and would be divided by. Over the last step of the pilot
        # run it is kept at that step's gain: a solver can follow this, and little is missing then.
        least = jnp.abs(self.profile.ahead[-2])
        ahead = jnp.where(jnp.abs(ahead) < least, jnp.copysign(least, ahead), ahead)
        return 2 * missing * pilot / (ahead * local.sigma**2 * local.score_norm2)

    def met(self, log_density: Scalar, error: Scalar, size: int) -> Scalar:
        """Return whether distance from the target plus `error` is within `tolerance * size`.

        Args:
            log_density: the log-density reached at t_min, in nats.
            error: stated error of `log_density` in nats; NaN if unknown, and the target then counts
                as not met.
            size: number of elements D of one sample.
        """
        return jnp.abs(log_density - self.target) + error <= self.tolerance * size


def target_guidance(
    target: ArrayLike,
    model: Field,
    profile: Profile,
    *,
    bound: ArrayLike = 1.0,
    tolerance: ArrayLike = 0.01,
) -> TargetGuidance:
    """Make a guide that steers the tracked log p to `target` nats at the model's t_min.

    Args:
        target: the log-density asked for, in nats.
        model: the field that will be sampled.
        profile: the result of `pilot` with this model.
        bound: the score weight eta stays in [1 - bound, 1 + bound]. Targets that need more are
            not met.
        tolerance: nats per dimension within which the target counts as met.

    Returns:
        A guide. Put it last: it keeps only the component of earlier guidance that is
        perpendicular to the score.

    Raises:
        ValueError: if the target is not finite.
    """
    target = require("target", as_float(target), "be finite (in nats)", finite)
    alpha_end = model.path.alpha(model.t_min)
    return TargetGuidance(target, profile, alpha_end, as_float(bound), as_float(tolerance))
