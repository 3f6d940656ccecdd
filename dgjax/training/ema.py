"""Moving averages of weights with power-function profiles, and post-hoc EMA.

After step t, the average with exponent gamma weighs the weights of step k about as (k/t)^gamma. It
forgets the start of training at every length of training, so there is no warm-up to choose (EDM2,
arXiv 2312.02696, section 3.1). Exactly, the weight of step k is the integral over (k - 1, k] of the
profile

    p(tau) = (gamma + 1)/t (tau/t)^gamma on [0, t].

A linear combination of stored profiles is therefore exactly the profile of the same combination of
stored averages. Post-hoc EMA finds the combination nearest to a profile that was not stored
(section 3.2 and appendix C of the paper).
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from dgjax.typing import Scalar

__all__ = ["Combination", "combine", "exponent", "inner_product", "update"]


def exponent(width: float) -> float:
    """Return the exponent gamma of the profile with a given relative width.

    The profile on [0, 1] is the Beta(gamma + 1, 1) distribution, with variance
    (gamma + 1)/((gamma + 2)^2 (gamma + 3)) = width^2. This is a cubic in gamma; its largest root is
    the exponent.

    Args:
        width: standard deviation of the profile, relative to the length of training.

    Raises:
        ValueError: if width is above 1/sqrt(12), where no gamma >= 0 exists, or below 1e-9.
    """
    if not 1e-9 <= width <= 12**-0.5:
        raise ValueError(f"ema: width must be in [1e-9, {12**-0.5:.4f}], got {width}")
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def update(
    average: PyTree[Array], weights: PyTree[Array], step: Scalar, gamma: float
) -> PyTree[Array]:
    """Return the moving average after one more step.

    Args:
        average: the average after `step - 1` steps; it has no influence at step 1.
        weights: the weights after `step` steps.
        step: number of steps taken, at least 1.
        gamma: exponent of the profile.
    """
    keep = (1 - 1 / step) ** (gamma + 1)
    return jax.tree.map(lambda a, b: (keep * a + (1 - keep) * b).astype(a.dtype), average, weights)


def inner_product(
    step: ArrayLike, gamma: ArrayLike, other_step: ArrayLike, other_gamma: ArrayLike
) -> np.ndarray:
    """Return the integral over tau of the product of two profiles, in float64.

    With m = min(t, s) it is
    (gamma + 1)(delta + 1)/(gamma + delta + 1) (m/t)^gamma (m/s)^delta / max(t, s).

    Args:
        step: t of the first profile. All arguments broadcast.
        gamma: exponent of the first profile.
        other_step: s of the second profile.
        other_gamma: delta, the exponent of the second profile.
    """
    t, g, s, d = (np.asarray(a, np.float64) for a in (step, gamma, other_step, other_gamma))
    m = np.minimum(t, s)
    # Powers of ratios: powers of steps would overflow.
    return (g + 1) * (d + 1) / (g + d + 1) * (m / t) ** g * (m / s) ** d / np.maximum(t, s)


class Combination(NamedTuple):
    """A linear combination of stored averages.

    Attributes:
        coefficients: one for each stored average, (n,); they sum to 1.
        error: norm of the difference between the combined and the requested profile, relative to
            the norm of the requested profile.
    """

    coefficients: Float[np.ndarray, " n"]
    error: float


def combine(steps: ArrayLike, gammas: ArrayLike, step: int, gamma: float) -> Combination:
    """Find the combination of stored averages nearest to the average (`step`, `gamma`).

    This is least squares over profiles, with coefficients that sum to 1: every profile has integral
    1, and another sum would scale the weights. Profiles that end after `step` take part too: only
    they hold the weights of the steps just before `step`, after the last snapshot. Even so the
    match is poor for a `step` that is not stored, since no stored profile ends there.

    Args:
        steps: steps of the stored averages, (n,).
        gammas: exponents of the stored averages, (n,).
        step: step of the requested average.
        gamma: exponent of the requested average.

    Raises:
        ValueError: if the shapes differ, nothing is stored, or `step` is not between 1 and the last
            stored step.
    """
    t, g = np.asarray(steps, np.float64), np.asarray(gammas, np.float64)
    if t.shape != g.shape or t.ndim != 1 or t.size == 0:
        raise ValueError(f"ema: steps {t.shape} and gammas {g.shape} must be (n,) with n > 0")
    if not 1 <= step <= t.max():
        raise ValueError(f"ema: step must be from 1 to the last stored, {t.max():.0f}; got {step}")
    norm = np.sqrt(inner_product(step, gamma, step, gamma))
    norms = np.sqrt(inner_product(t, g, t, g))
    # With profiles scaled to norm 1 the condition number is about 1e4 for two widths and 32 steps.
    gram = inner_product(t[:, None], g[:, None], t, g) / (norms[:, None] * norms)
    right = inner_product(t, g, step, gamma) / (norms * norm)
    ones = norm / norms
    # Lagrange multiplier for the sum of the coefficients.
    bordered = np.block([[gram, ones[:, None]], [ones, np.zeros(1)]])
    scaled = np.linalg.lstsq(bordered, np.append(right, 1.0), rcond=None)[0][:-1]
    squared = 1 - 2 * scaled @ right + scaled @ gram @ scaled
    return Combination(scaled * norm / norms, float(np.sqrt(max(squared, 0.0))))
