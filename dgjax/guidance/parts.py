"""Parts of a sample: a region of an image, or a band of its spatial frequencies.

A part is a symmetric linear map M with eigenvalues between 0 and 1: a diagonal matrix of weights,
in the basis of the elements (a region) or of the discrete cosine transform (a band).
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from dgjax.model.faults import require
from dgjax.typing import Sample, Scalar, as_float, register_dataclass

__all__ = ["Part", "band", "region"]


@register_dataclass
@dataclass(frozen=True)
class Part:
    """Weights in [0, 1] of elements or of frequencies. Made by `region` or `band`.

    Attributes:
        weights: an array that broadcasts to the shape of a sample.
        axes: the axes of a sample that are transformed to frequencies; none for a region.
    """

    weights: Array
    axes: tuple[int, ...] = field(default=(), metadata={"static": True})

    def __call__(self, z: Sample) -> Sample:
        """Return M z."""
        weights = self.weights.astype(z.dtype)
        if not self.axes:
            return weights * z
        spectrum = jax.scipy.fft.dctn(z, axes=self.axes, norm="ortho")
        return jax.scipy.fft.idctn(weights * spectrum, axes=self.axes, norm="ortho")

    def trace_of_square(self, x: Sample) -> Scalar:
        """Return tr M^2, for samples of the shape of x."""
        return jnp.sum(jnp.broadcast_to(self.weights.astype(x.dtype), x.shape) ** 2)

    def rest(self) -> "Part":
        """Return the part that is left: 1 - M."""
        return Part(1 - self.weights, self.axes)


def region(weights: ArrayLike) -> Part:
    """Make the part of a sample that has weights, such as a mask of an image.

    Args:
        weights: numbers in [0, 1] that broadcast to the shape of a sample, such as (H, W, 1) for
            images (H, W, C). Not all of them are 0.

    Returns:
        `Part`.

    Raises:
        ValueError: if a weight is outside [0, 1] or all are 0.
    """
    return Part(_checked(weights))


def band(
    shape: tuple[int, ...],
    *,
    low: float = 0.0,
    high: float = np.inf,
    axes: tuple[int, ...] = (0, 1),
) -> Part:
    """Make the part of a sample with spatial frequencies in a band.

    The frequencies are those of the discrete cosine transform. It reflects an image at its edges.

    Args:
        shape: of one sample, such as (H, W, C).
        low: smallest frequency, in cycles per pixel. 0 is the mean.
        high: the frequency at which the band ends. The largest is 1/2 along each axis.
        axes: the spatial axes.

    Returns:
        `Part`.

    Raises:
        ValueError: if no frequency lies in the band.
    """
    axes = tuple(int(axis) % len(shape) for axis in axes)
    sizes = [shape[axis] if axis in axes else 1 for axis in range(len(shape))]
    along = [np.arange(size) / (2 * size) for size in sizes]
    frequency = np.sqrt(sum(f**2 for f in np.meshgrid(*along, indexing="ij", sparse=True)))
    chosen = (frequency >= low) & (frequency < high)
    if not chosen.any():
        raise ValueError(
            f"no frequency of a sample of shape {shape} is in [{low:g}, {high:g}): they are "
            f"multiples of {1 / (2 * max(sizes)):g} cycles per pixel, up to "
            f"{float(frequency.max()):.3g}"
        )
    return Part(_checked(chosen), axes)


def _checked(weights: ArrayLike) -> Array:
    weights = as_float(weights)
    weights = require("weights", weights, "lie in [0, 1]", lambda w: (w >= 0) & (w <= 1))
    return require("weights", weights, "not all be 0", lambda w: jnp.any(w > 0))
