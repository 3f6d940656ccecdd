r"""Local intrinsic dimension of data, from the divergence of the score.

A sample near which data fill d of the D dimensions, seen at noise w = sigma/alpha, has

    d_w(x) = D + sigma^2 (Lap log p_t(alpha x) + |grad log p_t(alpha x)|^2),

which tends to d as w goes to 0 (FLIPD, arXiv 2406.03537, Theorem 3.1). The change of log-density
with the noise says the same: d_w = D + d log p_w(x)/d log w, p_w the density of x + w noise.
"""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgjax.evaluation.normality import h_statistic
from dgjax.model.divergence import Divergence
from dgjax.model.field import Field
from dgjax.typing import Cond, Key, Sample, as_float

__all__ = ["local_dimension"]


def local_dimension(
    model: Field,
    t: ArrayLike,
    x: Sample,
    *,
    divergence: Divergence,
    key: Key,
    cond: Cond = None,
) -> Float[Array, " p"]:
    """Estimate the local intrinsic dimension of data at x, as seen at the noise of time t.

    FLIPD (arXiv 2406.03537), Theorem 3.1. Directions in which data vary less than sigma/alpha do
    not count, so compare samples at one t. Far from the data the squared score adds to the value,
    which can then exceed D.

    Args:
        model: the field.
        t: a time of its path.
        x: one sample of the data, of any shape, without noise and not scaled by alpha.
        divergence: trace estimator. The standard deviation of its noise for one Rademacher probe
            is of the order of sqrt(2 D).
        key: for the probes.
        cond: condition of the model, if any.

    Returns:
        (p,) independent estimates, one for each estimate that `divergence` makes.
    """
    t, x = as_float(t), jnp.asarray(x)
    x = model.path.alpha(t).astype(x.dtype) * x
    h = h_statistic(model, t, x, divergence=divergence, key=key, cond=cond)
    return x.size + jnp.sqrt(2.0 * x.size) * h
