r"""Error of a quadrature along given points, from scores alone.

A quadrature of identity (C) is compared with another rule, of which only scores are known. The
Laplacian is then missing, and with probes the difference of two would be mostly noise. |sigma s|^2
takes its place, which is as smooth: under p_t its mean is that of -sigma^2 Lap log p. The line
integral and this part are compared apart, since their errors may cancel where those of (C) do not.
The error stated is the sum of the sizes of all differences. So errors of one sign are not
understated, and those of random signs are overstated.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgjax.model.paths import Coefficients
from dgjax.sampling.gauss_legendre import gauss, last_coefficients
from dgjax.typing import Sample, Scalar, inner

__all__ = ["cumulative_error", "score_gains", "segment_errors"]


def score_gains(
    c: Coefficients, score: Sample, dy: Sample, dlog_w: Scalar
) -> Float[Array, " parts"]:
    """Evaluate the parts of (C) that the score tells: <s_y, dy> and |sigma s|^2 d log w, in nats.

    Args:
        c: alpha, sigma and their time derivatives.
        score: of the model at the point.
        dy: change of y = x/alpha, or its rate.
        dlog_w: change of log w, or its rate.

    Returns:
        The two numbers.
    """
    return jnp.stack([c.alpha * inner(score, dy), c.sigma**2 * jnp.sum(score**2) * dlog_w])


def segment_errors(
    score_gain: Callable[[Int[Array, ""], Scalar], Float[Array, " parts"]],
    parts: Float[Array, "n nodes parts"],
    every: int,
    batch: int,
) -> Float[Array, " n"]:
    """Estimate the sizes of the errors of a Gauss-Legendre rule on n segments, in nats.

    In the segments where the parts vary most, the rule is compared with that of one node more. In
    the others the error is taken to be in proportion to the variation. On smooth lines it falls
    faster than that.

    Args:
        score_gain: maps the index of a segment and a share of it to `score_gains` there.
        parts: (n, nodes, parts) its values at the nodes of the rule.
        every: the error is measured in one of so many segments.
        batch: nodes evaluated together.

    Returns:
        (n,) sizes.
    """
    segments, nodes, _ = parts.shape
    variation = jnp.sum(jnp.abs(_weigh(last_coefficients(nodes, 1)[:, 0], parts)), -1)
    few, more = -(-segments // every), nodes + 1
    _, chosen = jax.lax.top_k(jax.lax.stop_gradient(variation), few)

    shares, masses = gauss(more)
    finer = jax.lax.map(
        lambda index: score_gain(chosen[index // more], shares[index % more]),
        jnp.arange(few * more),
        batch_size=min(batch, few * more),
    )
    finer = _weigh(masses, finer.reshape(few, more, -1))
    coarser = _weigh(gauss(nodes)[1], parts[chosen])
    errors = jnp.sum(jnp.abs(finer - coarser), -1)
    scale = jnp.sum(variation[chosen])
    ratio = jnp.sum(errors) / jnp.where(scale == 0, 1, scale)
    return (ratio * variation).at[chosen].set(errors)


def cumulative_error(errors: Float[Array, " n"]) -> Float[Array, " n+1"]:
    """Sum the sizes of the errors between consecutive points to those at the points, in nats."""
    return jnp.concatenate([jnp.zeros_like(errors[:1]), jnp.cumsum(errors)])


def _weigh(weights: Float[Array, " k"], parts: Float[Array, "n k p"]) -> Float[Array, "n p"]:
    return jnp.einsum("k,nkp->np", weights, parts, precision="highest")
