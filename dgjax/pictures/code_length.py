r"""Bounds on the bits per dimension of 8-bit data under a continuous density.

A model gives a density p of points, and a picture is a point of levels k with P(k) the mass of p in
the cell around it, one level wide. With noise u of a density q in the cell,

    log P(k) = log E_q[p(k + u)/q(u)] >= E_q[log p(k + u) - log q(u)],

so what is measured with one draw bounds -log P(k) from above in the mean. The mean of p/q over K
draws has a tighter bound (Burda et al. 2016, arXiv 1509.00519). The noise may be uniform, as that
of `dgjax.dequantize`, or the Gaussian noise that the model expects at t_min, cut off at the cell
(Zheng et al. 2023, arXiv 2305.03935, section 3.2). Where the cell is narrow against the noise the
two are alike.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from dgjax.pictures.quantization import check_is_8_bit
from dgjax.typing import Key, Sample, Scalar, as_float

__all__ = ["Dequantized", "bits_per_dim_bound", "dequantize_truncated"]


class Dequantized(NamedTuple):
    """Levels with noise.

    Attributes:
        x: levels plus noise, in the model's coordinates.
        noise_density: log-density of the noise in these coordinates, in nats.
    """

    x: Sample
    noise_density: Scalar


def dequantize_truncated(
    key: Key,
    levels: ArrayLike,
    data_range: tuple[float, float] = (-1.0, 1.0),
    *,
    sigma: ArrayLike,
) -> Dequantized:
    """Add Gaussian noise that is cut off at the edges of each level.

    Args:
        key: for the noise.
        levels: uint8 levels of one sample, of any shape.
        data_range: (low, high), the values of levels 0 and 255.
        sigma: standard deviation of the noise before it is cut off, in the model's coordinates:
            sigma(t_min)/alpha(t_min), which the model was trained with.

    Returns:
        The sample with noise, and the log-density of the noise.

    Raises:
        ValueError: if `levels` is not uint8.
    """
    levels = check_is_8_bit(levels)
    low, high = data_range
    width = (high - low) / 255.0
    sigma = as_float(sigma)
    edge = 0.5 * width / sigma
    normal = jax.random.truncated_normal(key, -edge, edge, levels.shape, sigma.dtype)
    mass = jax.scipy.special.erf(edge / jnp.sqrt(2.0))
    each = -0.5 * normal**2 - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(sigma * mass)
    x = low + levels.astype(sigma.dtype) * width + sigma * normal
    return Dequantized(x, jnp.sum(each))


def bits_per_dim_bound(log_weights: ArrayLike, size: int) -> Array:
    """Return a bound on the bits per dimension of levels from K draws of noise.

    -log(mean of the weights)/(D log 2). In the mean over draws it is at least the number of bits,
    and the more draws the closer. That holds for log-densities without errors: errors that are
    independent among the draws make it too small, so use the same probes for all of them.

    Args:
        log_weights: (..., K) log p(x) - log q(noise) of the draws, in nats.
        size: number of elements D of one sample.

    Returns:
        (...) bits per dimension.
    """
    log_weights = as_float(log_weights)
    mean = jax.nn.logsumexp(log_weights, -1) - jnp.log(log_weights.shape[-1])
    return -mean / (size * jnp.log(2.0))
