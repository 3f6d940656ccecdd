"""Moving averages of weights with a power-law profile (Karras et al. 2024, section 3.1).

After step t the average weighs the weights of step k by about (k/t)^gamma: it forgets the start
of training at every length of training, so there is no warm-up to set.
"""

import jax
import numpy as np
from jaxtyping import Array, PyTree

from dgjax.typing import Scalar

__all__ = ["exponent", "update"]


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
