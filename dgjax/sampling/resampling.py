"""Weighted particles: effective sample size and systematic resampling, under `jit`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgjax.typing import Key, Scalar

__all__ = ["Resampled", "effective_size", "log_mean_weight", "resample", "systematic_indices"]


class Resampled(NamedTuple):
    """Particles after a step of resampling.

    Attributes:
        indices: (n,) index of the particle that each one is a copy of.
        log_weights: (n,) of the copies. Their mean weight is that of the particles before.
    """

    indices: Int[Array, " n"]
    log_weights: Float[Array, " n"]


def effective_size(log_weights: Float[Array, " n"]) -> Scalar:
    """Return the effective sample size, 1 / sum of squared weights that add up to 1.

    Args:
        log_weights: (n,) in nats, up to one constant.

    Returns:
        A number between 1 and n.
    """
    once, twice = jax.nn.logsumexp(log_weights), jax.nn.logsumexp(2 * log_weights)
    return jnp.exp(2 * once - twice)


def log_mean_weight(log_weights: Float[Array, " n"]) -> Scalar:
    """Return the logarithm of the mean weight, in nats."""
    return jax.nn.logsumexp(log_weights) - jnp.log(jnp.asarray(log_weights.size, log_weights.dtype))


def systematic_indices(key: Key, log_weights: Float[Array, " n"]) -> Int[Array, " n"]:
    """Draw n particles in proportion to their weights, by one uniform number for all.

    A particle of weight w_i, in weights that add up to 1, is drawn floor(n w_i) or ceil(n w_i)
    times, n w_i times in the mean.

    Args:
        key: random key.
        log_weights: (n,) in nats, up to one constant.

    Returns:
        (n,) indices, increasing.
    """
    count = log_weights.shape[0]
    edges = jnp.cumsum(jax.nn.softmax(log_weights))
    edges = edges / edges[-1]  # rounding
    places = (jax.random.uniform(key, dtype=edges.dtype) + jnp.arange(count)) / count
    return jnp.minimum(jnp.searchsorted(edges, places, side="right"), count - 1)


def resample(key: Key, log_weights: Float[Array, " n"], below: Scalar) -> Resampled:
    """Resample where the effective sample size is below a share of the particles.

    Args:
        key: random key.
        log_weights: (n,) in nats, up to one constant.
        below: the share, in [0, 1]; 0 never resamples.

    Returns:
        `Resampled`; the particles as they are where the effective sample size is larger.
    """
    count = log_weights.shape[0]
    drawn = Resampled(
        systematic_indices(key, log_weights),
        jnp.broadcast_to(log_mean_weight(log_weights), (count,)),
    )
    same = Resampled(jnp.arange(count, dtype=drawn.indices.dtype), log_weights)
    low = effective_size(log_weights) < below * count
    return jax.tree.map(lambda a, b: jnp.where(low, a, b), drawn, same)
