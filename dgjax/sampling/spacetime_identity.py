"""Identity (C): the change of log p_t along any curve through (t, x).

In scaled coordinates y = x/alpha, w = sigma/alpha a marginal is the data with noise of standard
deviation w added, which obeys the heat equation. Along any curve, whatever made it,

    d log p = <s_y, dy> + w^2 (Lap_y log p + |s_y|^2) d log w,                          (C)

with log p_t(x) = log p(y; w) - D log alpha and s_y = alpha s.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.model.local import Local
from dgjax.model.paths import Coefficients, Path
from dgjax.typing import Sample, Scalar, inner

__all__ = ["cumulative_log_density", "log_density_gain"]


def log_density_gain(
    c: Coefficients | Local,
    score: Sample,
    divergences: Float[Array, " m"],
    dy: Sample,
    dlog_w: Scalar,
) -> Float[Array, " m"]:
    """Evaluate the right-hand side of (C) along (dy, d log w), in nats.

    The Laplacian is w^2 Lap_y log p = sigma^2 Lap_x log p, from div u = D f - g^2/2 Lap_x log p.

    Args:
        c: alpha, sigma and their time derivatives.
        score: of the model at the point.
        divergences: (m,) estimates of div u there.
        dy: change of y = x/alpha, or its rate.
        dlog_w: change of log w, or its rate.

    Returns:
        (m,) gains of log p(y; w), one by each divergence estimate.
    """
    laplacians = 2 * c.sigma**2 * (score.size * c.f - divergences) / c.g2
    heat = laplacians + c.sigma**2 * jnp.sum(score**2)
    return c.alpha * inner(score, dy) + heat * dlog_w


def cumulative_log_density(
    path: Path,
    ts: Float[Array, " n+1"],
    size: int | Array,
    start: Scalar | Float[Array, " m"],
    gains: Float[Array, "n m"],
) -> Float[Array, "n+1 m"]:
    """Sum the gains of log p(y; w) to log p_t(x) at every point, in nats.

    Args:
        path: of the model.
        ts: (n+1,) times of the points.
        size: number of elements D of x.
        start: log p_t(x) at the first point.
        gains: (n, m) gains between consecutive points.

    Returns:
        (n+1, m) log-densities.
    """
    volume = size * jnp.log(jax.vmap(path.alpha)(ts))
    scaled = jnp.concatenate([jnp.zeros_like(gains[:1]), jnp.cumsum(gains, 0)])
    return jnp.atleast_1d(start)[None] + scaled - (volume - volume[0])[:, None]
