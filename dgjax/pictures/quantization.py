"""What log-densities and samples are summed up by: bits per dimension, 8-bit images, PNG bytes."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike
from PIL import Image

from dgjax.typing import Key, Sample, as_float

__all__ = ["bits_per_dim", "dequantize", "png_bytes", "to_image", "to_png", "to_uint8"]


def bits_per_dim(log_density: ArrayLike, size: int, data_range: tuple[float, float]) -> Array:
    """Bits per dimension of 8-bit data whose 256 levels span `data_range`.

    -log p/(D log 2) + log2(levels per unit): for data in [-1, 1] the usual log2(127.5).

    Args:
        log_density: of x in the model's coordinates, in nats.
        size: number of elements D of one sample.
        data_range: (low, high), the values of levels 0 and 255.
    """
    low, high = data_range
    return -as_float(log_density) / (size * jnp.log(2.0)) + jnp.log2(255.0 / (high - low))


def dequantize(
    key: Key, levels: ArrayLike, data_range: tuple[float, float] = (-1.0, 1.0)
) -> Sample:
    """uint8 levels of any shape with uniform noise of one level around them, in the model's units.

    Centred, so that the mean of the noisy level is where training put it. The log-density of the
    result is a lower bound, in expectation, on that of the levels.

    Raises:
        ValueError: if `levels` is not uint8.
    """
    levels = jnp.asarray(levels)
    if levels.dtype != jnp.uint8:
        raise ValueError(
            f"only 8-bit levels are dequantized, got {levels.dtype}; pass floats as is"
        )
    low, high = data_range
    noise = jax.random.uniform(key, levels.shape) - 0.5
    return low + (levels.astype(noise.dtype) + noise) * ((high - low) / 255.0)


def to_uint8(x: ArrayLike, data_range: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Samples in the model's coordinates as 8-bit levels, rounded and clipped."""
    low, high = data_range
    levels = (np.asarray(x, np.float64) - low) * (255.0 / (high - low))
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


def to_image(x: ArrayLike, data_range: tuple[float, float] = (-1.0, 1.0)) -> Image.Image:
    """One sample (H, W, C) as a Pillow image.

    Raises:
        ValueError: if x is not (H, W, 1) or (H, W, 3).
    """
    levels = to_uint8(x, data_range)
    if levels.ndim != 3 or levels.shape[-1] not in (1, 3):
        raise ValueError(f"an image has shape (H, W, 1) or (H, W, 3), got {levels.shape}")
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def to_png(x: ArrayLike, data_range: tuple[float, float] = (-1.0, 1.0)) -> bytes:
    """One sample (H, W, C) as an optimised 8-bit PNG file.

    Raises:
        ValueError: as `to_image`.
    """
    buffer = io.BytesIO()
    to_image(x, data_range).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def png_bytes(x: ArrayLike, data_range: tuple[float, float] = (-1.0, 1.0)) -> int:
    """Size of one sample (H, W, C) as an optimised 8-bit PNG, in bytes: a measure of its detail.

    Raises:
        ValueError: as `to_image`.
    """
    return len(to_png(x, data_range))
