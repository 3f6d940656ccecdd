"""Conversion between samples in the model's coordinates and 8-bit levels, and bits per dimension.

Level 0 stands for the low end of the model's `data_range` and level 255 for the high end.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, UInt8

from dgjax.typing import Key, Sample, as_float

__all__ = ["bits_per_dim", "check_is_8_bit", "dequantize", "from_uint8", "to_uint8"]


def to_uint8(
    x: ArrayLike, data_range: tuple[float, float] = (-1.0, 1.0)
) -> UInt8[np.ndarray, "..."]:
    """Round samples to 8-bit levels; values outside `data_range` are clipped.

    Args:
        x: samples in the model's coordinates, of any shape. NaN becomes level 0.
        data_range: (low, high), the values of levels 0 and 255.

    Returns:
        uint8 levels of the shape of `x`.
    """
    low, high = data_range
    levels = (np.asarray(x, np.float64) - low) * (255.0 / (high - low))
    return np.nan_to_num(np.clip(np.round(levels), 0, 255)).astype(np.uint8)


def from_uint8(
    levels: UInt8[np.ndarray, "..."], data_range: tuple[float, float] = (-1.0, 1.0)
) -> Float[np.ndarray, "..."]:
    """Convert 8-bit levels to samples in the model's coordinates, without noise.

    Args:
        levels: uint8 levels of any shape.
        data_range: (low, high), the values of levels 0 and 255.

    Returns:
        float32 values of the shape of `levels`.
    """
    low, high = data_range
    return low + levels.astype(np.float32) * np.float32((high - low) / 255)


def dequantize(
    key: Key, levels: ArrayLike, data_range: tuple[float, float] = (-1.0, 1.0)
) -> Sample:
    """Convert 8-bit levels to samples in the model's coordinates, with uniform noise.

    The noise is one level wide and centred on the level, so its mean is the value that training
    gives this level. The expected log-density of the result is a lower bound on the log-density
    of the levels.

    Args:
        key: for the noise.
        levels: uint8 levels of any shape.
        data_range: (low, high), the values of levels 0 and 255.

    Returns:
        Floats of the shape of `levels`.

    Raises:
        ValueError: if `levels` is not uint8.
    """
    levels = check_is_8_bit(levels)
    low, high = data_range
    noise = jax.random.uniform(key, levels.shape) - 0.5
    return low + (levels.astype(noise.dtype) + noise) * ((high - low) / 255.0)


def check_is_8_bit(levels: ArrayLike) -> Array:
    """Return levels as an array.

    Args:
        levels: uint8 levels of any shape.

    Raises:
        ValueError: if they are of another type.
    """
    levels = jnp.asarray(levels)
    if levels.dtype != jnp.uint8:
        raise ValueError(
            f"only 8-bit levels are dequantized, got {levels.dtype}; pass floats as is"
        )
    return levels


def bits_per_dim(log_density: ArrayLike, size: int, data_range: tuple[float, float]) -> Array:
    """Convert log-densities to bits per dimension of 8-bit data.

    -log p/(D log 2) + log2(levels per unit), where 256 levels span `data_range`. For data in
    [-1, 1] the second term is log2(127.5).

    Args:
        log_density: log-densities of samples in the model's coordinates, in nats.
        size: number of elements D of one sample.
        data_range: (low, high), the values of levels 0 and 255.

    Returns:
        Bits per dimension, of the shape of `log_density`.
    """
    low, high = data_range
    return -as_float(log_density) / (size * jnp.log(2.0)) + jnp.log2(255.0 / (high - low))
