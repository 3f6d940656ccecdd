"""Gauss-Legendre rules on [0, 1]."""

import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import legendre

from dgjax.typing import as_float

__all__ = ["gauss", "last_coefficients"]


def gauss(nodes: int) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Return the nodes and weights of the rule on [0, 1] that is exact to degree 2 n - 1."""
    points, masses = legendre.leggauss(nodes)
    return as_float(0.5 * (points + 1)), as_float(0.5 * masses)


def last_coefficients(nodes: int, count: int) -> Float[Array, "n k"]:
    """Return the weights that give the last Legendre coefficients of a function at the nodes.

    Args:
        nodes: number n of the rule's nodes, and of the coefficients that they determine.
        count: how many k of the coefficients, those of the highest degrees.

    Returns:
        (n, k), to be multiplied by the values at the nodes from the left.
    """
    points, masses = legendre.leggauss(nodes)
    degrees = np.arange(nodes)[-count:]
    values = legendre.legvander(points, nodes - 1)[:, degrees]
    return as_float((degrees + 0.5) * masses[:, None] * values)
