"""Omegance (Hou et al. 2024, arXiv 2411.17769): multiply the predicted noise by a number.

As the noise prediction is -sigma times the score, this multiplies the score, and the log-density
changes by -g^2/2 (omega - 1)|s|^2 per unit of time more than along the velocity. In a large
dimension D with much noise |sigma s|^2 is nearly D, so omega = 1 + sqrt(2/D) Phi^-1(q) is
nearly density guidance at q.
"""

from dataclasses import dataclass

from jaxtyping import ArrayLike

from dgjax.guidance.parts import Part
from dgjax.guidance.schedules import Schedule, schedule
from dgjax.model.faults import finite, require
from dgjax.model.local import Local
from dgjax.typing import Sample, register_dataclass

__all__ = ["Omegance", "omegance"]


@register_dataclass
@dataclass(frozen=True)
class Omegance:
    """Replace the drift v by f x + omega (v - f x), in a part of the sample. Made by `omegance`.

    Attributes:
        omega: a schedule in log-SNR; 1 changes nothing.
        part: the part of the sample whose noise prediction is multiplied; None for all of it.
    """

    omega: Schedule
    part: Part | None

    def __call__(self, drift: Sample, local: Local) -> Sample:
        """Return the guided drift."""
        # f x is singular where alpha vanishes, while u - f x = -g^2/2 s is not.
        beyond = (drift - local.velocity) - 0.5 * local.g2 * local.score
        change = (self.omega(local.logsnr) - 1) * beyond
        return drift + (change if self.part is None else self.part(change))


def omegance(omega: ArrayLike | Schedule, *, part: Part | None = None) -> Omegance:
    """Make a guide that multiplies the predicted noise by omega (arXiv 2411.17769).

    omega > 1 gives smoother samples and omega < 1 more detail; the authors stay between 0.95 and
    1.05. A schedule makes omega depend on the noise level, and a part restricts it to a region (the
    omega schedules and omega masks of the paper). A constant omega in the whole sample is
    `temperature(1 / omega, scale=jnp.inf)`.

    The guide multiplies all guidance that it receives, as the paper does with the prediction after
    classifier-free guidance: put it after `classifier_free_guidance`. Density guidance after it
    removes its effect. The authors' program for flow matching multiplies the velocity around its
    mean instead; here it is the noise on every path.

    Args:
        omega: a number or a `Schedule` in log-SNR.
        part: the part of the sample that is guided, from `region` or `band`; None for all of it.

    Returns:
        A guide.

    Raises:
        ValueError: if a value of omega is not finite.
    """
    made = schedule(omega)
    return Omegance(Schedule(made.knots, require("omega", made.values, "be finite", finite)), part)
