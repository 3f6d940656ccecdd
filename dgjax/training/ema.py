"""Moving averages of weights with a power-law profile, and any other width made of stored ones.

After step t the average weighs the weights of step k by about (k/t)^gamma: it forgets the start
of training at every length of training, so there is no warm-up to set (Karras et al. 2024,
section 3.1). Exactly, the weight of step k is the integral over (k - 1, k] of the profile

    p(tau) = (gamma + 1)/t (tau/t)^gamma on [0, t]

so what holds of profiles as functions of tau holds of the averages, with nothing discretized:
the combination of stored profiles nearest to an asked one is the combination of stored averages
that replaces its average (section 3.2 and appendix C).
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from dgjax.typing import Scalar

__all__ = ["Combination", "combine", "exponent", "inner_product", "update"]


def exponent(width: float) -> float:
    """gamma of the profile whose standard deviation is `width` of the length of training.

    The profile k^gamma on [0, 1] is a Beta(gamma + 1, 1) distribution, of variance
    (gamma + 1)/((gamma + 2)^2 (gamma + 3)): the largest root of a cubic.

    Raises:
        ValueError: if width is outside (0, 1/sqrt(12)], where a gamma >= 0 exists.
    """
    if not 0 < width <= 12**-0.5:
        raise ValueError(f"ema: width must be in (0, {12**-0.5:.4f}], got {width}")
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def update(
    average: PyTree[Array], weights: PyTree[Array], step: Scalar, gamma: float
) -> PyTree[Array]:
    """The average after `step` >= 1 updates, given that after `step` - 1; exact at step 1."""
    keep = (1 - 1 / step) ** (gamma + 1)
    return jax.tree.map(lambda a, b: (keep * a + (1 - keep) * b).astype(a.dtype), average, weights)


def inner_product(
    step: ArrayLike, gamma: ArrayLike, other_step: ArrayLike, other_gamma: ArrayLike
) -> np.ndarray:
    """The integral of p_(t, gamma) p_(s, delta) over tau, in float64; arguments broadcast.

    With m = min(t, s) it is
    (gamma + 1)(delta + 1)/(gamma + delta + 1) (m/t)^gamma (m/s)^delta / max(t, s).
    """
    t, g, s, d = (np.asarray(a, np.float64) for a in (step, gamma, other_step, other_gamma))
    m = np.minimum(t, s)
    # Ratios, not powers of steps, which overflow.
    return (g + 1) * (d + 1) / (g + d + 1) * (m / t) ** g * (m / s) ** d / np.maximum(t, s)


class Combination(NamedTuple):
    """What to multiply stored averages by, and how far that is from what was asked.

    Attributes:
        coefficients: (n,), one for each stored average; they sum to 1.
        error: norm of the difference between the profiles over the norm of the asked one.
    """

    coefficients: Float[np.ndarray, " n"]
    error: float


def combine(steps: ArrayLike, gammas: ArrayLike, step: int, gamma: float) -> Combination:
    """The stored profiles' combination nearest to the profile (`step`, `gamma`).

    Least squares over combinations that sum to 1: every profile does, and a sum that missed 1
    would scale the network. Profiles of steps after `step` take part; without them nothing
    would be known of what came after the last stored step before it. Even so a `step` between
    stored ones is matched poorly, since only a stored profile ends where it does.

    Args:
        steps, gammas: (n,) each, of the stored averages.
        step, gamma: of the average asked for.

    Raises:
        ValueError: if the shapes differ or nothing is stored, or `step` is outside 1 to the last
            stored step.
    """
    t, g = np.asarray(steps, np.float64), np.asarray(gammas, np.float64)
    if t.shape != g.shape or t.ndim != 1 or t.size == 0:
        raise ValueError(f"ema: steps {t.shape} and gammas {g.shape} must be (n,) with n > 0")
    if not 1 <= step <= t.max():
        raise ValueError(f"ema: step must be from 1 to the last stored, {t.max():.0f}; got {step}")
    norm = np.sqrt(inner_product(step, gamma, step, gamma))
    norms = np.sqrt(inner_product(t, g, t, g))
    # In profiles of norm 1 the condition number is about 1e4 for two widths and 32 steps.
    gram = inner_product(t[:, None], g[:, None], t, g) / (norms[:, None] * norms)
    right = inner_product(t, g, step, gamma) / (norms * norm)
    ones = norm / norms
    bordered = np.block([[gram, ones[:, None]], [ones, np.zeros(1)]])
    scaled = np.linalg.lstsq(bordered, np.append(right, 1.0), rcond=None)[0][:-1]
    squared = 1 - 2 * scaled @ right + scaled @ gram @ scaled
    return Combination(scaled * norm / norms, float(np.sqrt(max(squared, 0.0))))
