"""Images at half and at twice the resolution, smoothed by a short filter against aliasing.

(1, 1) takes means of 2x2 pixels and repeats them; (1, 3, 3, 1) is NCSN++'s (Song et al. 2021).
Filters are of even length, since a filter centred on a pixel would shift the image.

Sums of shifted images, one side after the other: as convolutions of each channel alone, which
XLA's CPU compiles to plain loops, they took longer than the network's own.
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
    for axis in (1, 2):
        h = _pad(h, axis, size)
        end = h.shape[axis] - len(row) + 1
        shifted = [jax.lax.slice_in_dim(h, i, i + end, 2, axis) for i in range(len(row))]
        h = _weighted(row, shifted) / sum(row)
    return h


def grow(h: Image, row: Sequence[float]) -> Image:
    """Zeros between the pixels, smoothed by `row` along both sides."""
    row = row[::-1]  # what a pixel spreads by the filter, others gather by its reverse
    half = len(row) // 2
    edge = half // 2 + 1
    for axis in (1, 2):
        size, padded = h.shape[axis], _pad(h, axis, edge)
        parities = []
        for parity in (0, 1):  # of a pixel of the result: it meets every second of the weights
            first = (half + parity) % 2
            starts = range(edge + (parity + first - half) // 2, 2 * edge + 1)
            weights = row[first::2]
            shifted = [
                jax.lax.slice_in_dim(padded, start, start + size, axis=axis)
                for start, _ in zip(starts, weights, strict=False)
            ]
            parities.append(_weighted(weights, shifted))
        sides = (*h.shape[:axis], 2 * size, *h.shape[axis + 1 :])
        h = jnp.stack(parities, axis + 1).reshape(sides) * (2 / sum(row))
    return h


def _pad(h: Image, axis: int, size: int) -> Image:
    return jnp.pad(h, [(size, size) if i == axis else (0, 0) for i in range(h.ndim)])


def _weighted(weights: Sequence[float], images: list[Image]) -> Image:
    """The sum of the images, each times its weight."""
    terms = [weight * image for weight, image in zip(weights, images, strict=True)]
    return sum(terms[1:], terms[0])
