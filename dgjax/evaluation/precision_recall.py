"""Improved precision and recall of generated samples (Kynkäänniemi et al. 2019, arXiv 1904.06991).

The manifold of a set is the union of balls around its points; the radius of each ball is the
distance to the k-th nearest other point of the set. Precision is the share of generated points on
the real manifold: are the samples realistic? Recall is the share of real points on the generated
manifold: do the samples cover the data? Both depend on the number of points, so compare at one
number only.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

from dgjax.evaluation.intervals import Estimate, check_confidence, share_interval

__all__ = ["PrecisionRecall", "precision_recall"]

BLOCK = 2**23  # elements of one block of distances: 64 MB of float64


class PrecisionRecall(NamedTuple):
    """Precision and recall, each with Wilson's interval.

    The intervals describe the sampling of the counted points; the manifold of the other set is
    held fixed.

    Attributes:
        precision: share of generated points on the real manifold.
        recall: share of real points on the generated manifold.
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
    """Compute precision and recall between two sets of features, from all distances in float64.

    Args:
        generated: (n, D) features of generated samples.
        real: (m, D) features of real samples; usually m = n.
        k: which nearest neighbour sets the radius of a ball; the point itself is not counted.
        confidence: of the intervals, in (0, 1).

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
    # Distances are invariant to a shift, and differences of squares cancel less near 0.
    middle = y.mean(0)
    x, y = x - middle, y - middle
    hits = [int(_inside(p, q, _radii(q, k)).sum()) for p, q in ((x, y), (y, x))]
    return PrecisionRecall(
        share_interval(hits[0], len(x), confidence=confidence),
        share_interval(hits[1], len(y), confidence=confidence),
    )


def _radii(points: np.ndarray, k: int) -> np.ndarray:
    """Return the squared distance of every point to its k-th nearest other point, (n,)."""
    radii = np.empty(len(points))
    for index, squares in _squares(points, points):
        squares[np.arange(len(index)), index] = np.inf
        radii[index] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return radii


def _inside(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Mark the points that lie in a ball of squared radius `radii` around any centre, (n,)."""
    inside = np.empty(len(points), bool)
    for index, squares in _squares(points, centres):
        inside[index] = (squares <= radii).any(1)
    return inside


def _squares(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, block by block, indices of rows of x and their squared distances to all of y."""
    norms = (x**2).sum(1), (y**2).sum(1)
    step = max(BLOCK // len(y), 1)
    for start in range(0, len(x), step):
        index = np.arange(start, min(start + step, len(x)))
        sums = norms[0][index, None] + norms[1]
        squares = sums - 2 * (x[index] @ y.T)
        # Equal points must have distance 0, so smaller values than this are rounding errors.
        yield index, np.where(squares > 1e-13 * sums, squares, 0.0)
