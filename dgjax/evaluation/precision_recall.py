"""Improved precision and recall of generated samples (Kynkäänniemi et al. 2019).

A set's manifold is the union of balls around its points, each reaching to the k-th nearest other
point of the set. Precision is the share of generated points on the manifold of the real ones
(are they realistic?), recall the share of real points on that of the generated (is all there?).
Both depend on the number of points: compare at one number only.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

from dgjax.evaluation.intervals import Estimate, check_confidence, share_interval

__all__ = ["PrecisionRecall", "precision_recall"]

# Elements of one block of distances: 64 MB of float64.
BLOCK = 2**23


class PrecisionRecall(NamedTuple):
    """Both shares, with Wilson's interval each.

    The intervals are over the points that are counted, with the other set's manifold as it is.
    """

    precision: Estimate
    recall: Estimate


def precision_recall(
    generated: Float[ArrayLike, "n d"],
    real: Float[ArrayLike, "m d"],
    *,
    k: int = 3,
    confidence: float = 0.95,
) -> PrecisionRecall:
    """Precision and recall between two sets of features, from all distances in float64.

    Args:
        generated, real: (n, D) and (m, D) features; n = m is usual.
        k: of the nearest neighbour that a ball reaches to, a point itself not counted.
        confidence: of the intervals.

    Raises:
        ValueError: if shapes disagree, a set has no more than k rows or is not finite, or an
            option is out of range.
    """
    check_confidence(confidence)
    x, y = np.asarray(generated, np.float64), np.asarray(real, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features must be (n, D) and (m, D), got {x.shape} and {y.shape}")
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"k must be at least 1 and below the number of samples in either set, got {k} for "
            f"{len(x)} and {len(y)}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features must be finite; some are NaN or infinite")
    # Distances do not see a shift, and differences of squares cancel less near zero.
    middle = y.mean(0)
    x, y = x - middle, y - middle
    hits = [int(_inside(p, q, _reach(q, k)).sum()) for p, q in ((x, y), (y, x))]
    return PrecisionRecall(
        share_interval(hits[0], len(x), confidence=confidence),
        share_interval(hits[1], len(y), confidence=confidence),
    )


def _reach(points: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of every point to its k-th nearest other, (n,)."""
    reach = np.empty(len(points))
    for rows, squares in _squares(points, points):
        squares[np.arange(len(rows)), rows] = np.inf
        reach[rows] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return reach


def _inside(points: np.ndarray, centres: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Which points lie in a ball of squared radius `reach` around any of the centres, (n,)."""
    inside = np.empty(len(points), bool)
    for rows, squares in _squares(points, centres):
        inside[rows] = (squares <= reach).any(1)
    return inside


def _squares(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Squared distances from some rows of x to all of y, block by block, and which rows."""
    norms = (x**2).sum(1), (y**2).sum(1)
    step = max(BLOCK // len(y), 1)
    for start in range(0, len(x), step):
        rows = np.arange(start, min(start + step, len(x)))
        sums = norms[0][rows, None] + norms[1]
        squares = sums - 2 * (x[rows] @ y.T)
        # Equal points must be at zero distance: what is left there is rounding.
        yield rows, np.where(squares > 1e-13 * sums, squares, 0.0)
