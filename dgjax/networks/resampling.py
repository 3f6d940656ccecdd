"""Images at half and at twice the resolution, smoothed by a short filter against aliasing.

(1, 1) takes means of 2x2 pixels and repeats them; (1, 3, 3, 1) is NCSN++'s (Song et al. 2021).
Filters are of even length, since a filter centred on a pixel would shift the image.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["grow", "shrink"]

Image = Float[Array, "1 h w c"]


def shrink(h: Image, row: Sequence[float], padding: int | None = None) -> Image:
    """Smoothed by `row` along both sides, then every second pixel.

    Beyond its edges an image is zero, for as far as the result has half its sides, unless
    `padding` says how far.
    """
    size = len(row) // 2 - 1 if padding is None else padding
    return _filter(h, row, 1.0, window_strides=(2, 2), padding=2 * [(size, size)])


def grow(h: Image, row: Sequence[float]) -> Image:
    """Zeros between the pixels, smoothed by `row` along both sides."""
    size = len(row) // 2
    sides = 2 * [(size, size)]
    # What a pixel spreads by the filter, others gather by its reverse.
    return _filter(h, row[::-1], 4.0, window_strides=(1, 1), padding=sides, lhs_dilation=(2, 2))


def _filter(h: Image, row: Sequence[float], gain: float, **options) -> Image:
    line = jnp.asarray(row, h.dtype) / sum(row)
    kernel = gain * jnp.outer(line, line)[..., None, None]
    channels = h.shape[-1]
    return jax.lax.conv_general_dilated(
        h,
        jnp.broadcast_to(kernel, (*kernel.shape[:3], channels)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
        **options,
    )
