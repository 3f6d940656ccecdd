r"""How far a network's log-densities can be trusted: its inconsistency at one noise level.

Of the many ways to write it down, root mean squares in nats per dimension are kept,

    curl        |J_D - J_D^T|_F / sqrt(D),
    residual    |w r| / sqrt(D)                                 (symbols of `dgjax.inconsistency`),
    transport   |w r + (J_D - J_D^T) w s_y| / sqrt(D),

because they read as what a user wants to know: let two routes lie one standard deviation of the
noise apart in every dimension, in the direction that matters most; then their log-densities drift
apart by so many nats per dimension while one of them moves by a draw of the noise (curl), while
the noise changes by a factor e (residual), or along the probability-flow ODE (transport). Where
they lie apart at random it is that over sqrt(D).

Relative figures are large where little depends on them: of the residual at weak noise, where the
score hardly changes with w, of the curl at strong noise, where the denoiser hardly changes with
y. One is kept, the *asymmetry* |J_D - J_D^T|_F/|J_D|_F of the denoiser's Jacobian: 0 for a gradient
and sqrt(2) for a random matrix.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike

from dgjax.evaluation.inconsistency import Inconsistency
from dgjax.evaluation.intervals import Estimate, mean_interval

__all__ = ["InconsistencyStatistics", "inconsistency_statistics"]


class InconsistencyStatistics(NamedTuple):
    """Root mean squares over points at one noise level, each with Student's interval.

    Attributes:
        curl, residual, transport: nats per dimension, as above.
        asymmetry: of the denoiser's Jacobian, no unit.
        samples: number of points.
    """

    curl: Estimate
    residual: Estimate
    transport: Estimate
    asymmetry: Estimate
    samples: int


def inconsistency_statistics(
    points: Inconsistency, *, confidence: float = 0.95
) -> InconsistencyStatistics:
    """What `inconsistency` found at several points of one noise level, in figures.

    Intervals are of mean squares, whose roots they are then given as. The probes' noise is in
    them; where it is all that there is, the mean square may be negative, and 0 is given.

    Args:
        points: leaves (n,), from `jax.vmap` of `inconsistency`.
        confidence: of the intervals.

    Raises:
        ValueError: if the leaves are not (n,) with n > 0 or not finite, or `confidence` is outside
            (0, 1).
    """
    curl, residual, transport, jacobian = (np.asarray(leaf, np.float64) for leaf in points)
    shapes = {leaf.shape for leaf in (curl, residual, transport, jacobian)}
    if len(shapes) > 1 or curl.ndim != 1 or not curl.size:
        raise ValueError(f"leaves must all be (n,) with n > 0, got {sorted(shapes)}")
    if not all(np.isfinite(leaf).all() for leaf in (curl, residual, transport, jacobian)):
        raise ValueError("inconsistencies must be finite; some are NaN or infinite")

    def root(squares: ArrayLike) -> Estimate:
        found = mean_interval(squares, confidence=confidence)
        return Estimate(*np.sqrt(np.maximum(found, 0)).tolist())

    with np.errstate(invalid="ignore", divide="ignore"):  # a denoiser of no Jacobian: NaN
        ratio = curl.mean() / jacobian.mean()
        # Student's interval for a ratio of means, by what each point moves it.
        ratios = ratio + (curl - ratio * jacobian) / jacobian.mean()
    return InconsistencyStatistics(
        curl=root(curl),
        residual=root(residual),
        transport=root(transport),
        asymmetry=root(ratios),
        samples=curl.size,
    )
