"""Derivatives and integrals of values at points, as functions of the index of a point.

Polynomials through the nearest points. The values must be a smooth function of the index.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.typing import as_float

__all__ = ["difference_stencils", "integrate_points"]


def difference_stencils(width: int, count: int) -> tuple[Array, Array]:
    """Return indices and weights, both (count, width), of the derivative at each point.

    Args:
        width: how many of the nearest points are used.
        count: number of points.
    """
    return _stencils(count, count, np.eye(width)[1])


def integrate_points(width: int, rates: Float[Array, "n+1 m"]) -> Float[Array, "n m"]:
    """Integrate rates over each interval between consecutive points.

    Args:
        width: how many of the nearest points are used.
        rates: (n+1, m) per unit of the index.
    """
    count = rates.shape[0]
    near, integral = _stencils(count - 1, count, 1 / np.arange(1.0, width + 1))
    return jnp.einsum("ik,ikm->im", integral, rates[near], precision="highest")


def _stencils(targets: int, count: int, moments: np.ndarray) -> tuple[Array, Array]:
    """Indices and weights, both (targets, width), of a linear functional near each target.

    `moments` are its `width` values on 1, u, u^2, ... with u = 0 at the target. The weights are
    exact on polynomials through the `width` nearest of `count` points.
    """
    width = len(moments)
    first = np.clip(np.arange(targets) - (width - 1) // 2, 0, count - width)
    index = first[:, None] + np.arange(width)[None]
    offsets = index - np.arange(targets)[:, None]
    powers = offsets[:, None].astype(float) ** np.arange(width)[None, :, None]
    values = np.broadcast_to(moments, index.shape)[..., None]
    return jnp.asarray(index), as_float(np.linalg.solve(powers, values)[..., 0])
