"""Halve or double the resolution of an image, smoothed by a short filter against aliasing.

The filter (1, 1) takes means of 2x2 pixels on the way down and repeats pixels on the way up.
(1, 3, 3, 1) is the filter of NCSN++ (arXiv 2011.13456). Filters have an even length, since a
filter centred on a pixel would shift the image.

The filters are sums of shifted images, first along the height and then along the width. XLA on
CPUs compiles a convolution of each channel alone to plain loops, which took longer than the
network's own convolutions.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["filter_down", "filter_up"]

Image = Float[Array, "1 h w c"]


def filter_down(h: Image, kernel: Sequence[float], padding: int | None = None) -> Image:
    """Smooth an image along height and width, and keep every second pixel.

    Args:
        h: the image; its sides must be even.
        kernel: the filter along one side, normalized here.
        padding: number of zeros beyond each edge; unless given, as many as make the result half
            as high and wide.

    Returns:
        The smaller image.
    """
    size = len(kernel) // 2 - 1 if padding is None else padding
    for axis in (1, 2):
        h = _pad(h, axis, size)
        end = h.shape[axis] - len(kernel) + 1
        shifted = [jax.lax.slice_in_dim(h, i, i + end, 2, axis) for i in range(len(kernel))]
        h = _weighted_sum(kernel, shifted) / sum(kernel)
    return h


def filter_up(h: Image, kernel: Sequence[float]) -> Image:
    """Put zeros between the pixels of an image, and smooth it along height and width.

    Args:
        h: the image.
        kernel: the filter along one side, normalized here so that a constant image stays as it is.

    Returns:
        The image with twice the height and width.
    """
    # Each pixel of the result gathers from its neighbours, which takes the reversed filter.
    kernel = kernel[::-1]
    half = len(kernel) // 2
    edge = half // 2 + 1
    for axis in (1, 2):
        size, padded = h.shape[axis], _pad(h, axis, edge)
        parities = []
        # The zeros between the pixels meet every second weight: which ones depends on whether the
        # position in the result is even or odd.
        for parity in (0, 1):
            first = (half + parity) % 2
            starts = range(edge + (parity + first - half) // 2, 2 * edge + 1)
            weights = kernel[first::2]
            shifted = [
                jax.lax.slice_in_dim(padded, start, start + size, axis=axis)
                for start, _ in zip(starts, weights, strict=False)
            ]
            parities.append(_weighted_sum(weights, shifted))
        sides = (*h.shape[:axis], 2 * size, *h.shape[axis + 1 :])
        h = jnp.stack(parities, axis + 1).reshape(sides) * (2 / sum(kernel))
    return h


def _pad(h: Image, axis: int, size: int) -> Image:
    return jnp.pad(h, [(size, size) if i == axis else (0, 0) for i in range(h.ndim)])


def _weighted_sum(weights: Sequence[float], images: list[Image]) -> Image:
    terms = [weight * image for weight, image in zip(weights, images, strict=True)]
    return sum(terms[1:], terms[0])
