"""A small network that predicts the trace of a denoiser's Jacobian from the denoiser's own layers.

It has a tenth of a network's cost or less. It works at half the resolution of the sample. Outputs
of the network's layers are brought to that resolution by a linear layer each, at their own
resolution, so the head's own layers are few.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dgjax.networks.embedding import Embedding
from dgjax.networks.inputs import check_shape
from dgjax.typing import Sample, Scalar

__all__ = ["DiagonalHead"]

STRIDE = 2  # pixels of the sample for one of the head, along each side


class DiagonalHead(nnx.Module):
    """Predicts the diagonal of the Jacobian d x0/d y of a denoiser.

    With s = `sigma_data` the prediction is s^2/(s^2 + w^2) (1 + h), where h is the output of the
    layers. A new head has h = 0, which is exact for a Gaussian of standard deviation s. Where all
    layers that are read give vectors, as those of an MLP do, the sample is taken as a vector too.

    Args:
        shape: shape of one sample. Its last axis holds channels, those before are spatial.
        layers: names of the layers of the denoiser that are read.
        feature_shapes: shapes of their outputs, the last axis channels.
        sigma_data: standard deviation of the data.
        width: channels of the head.
        levels: number of noise levels between which the error is interpolated.
        rngs: draws the initial weights.

    Raises:
        ValueError: if there are not as many shapes as layers.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        layers: tuple[str, ...] = (),
        feature_shapes: tuple[tuple[int, ...], ...] = (),
        sigma_data: float = 0.5,
        width: int = 64,
        levels: int = 16,
        *,
        rngs: nnx.Rngs,
    ):
        if len(layers) != len(feature_shapes):
            raise ValueError(
                f"trace_head: {len(layers)} layers and {len(feature_shapes)} feature_shapes; give "
                "one shape for each layer"
            )
        self.shape, self.layers, self.sigma_data = tuple(shape), tuple(layers), float(sigma_data)
        self.feature_shapes = tuple(map(tuple, feature_shapes))
        dense = bool(feature_shapes) and all(len(shape) == 1 for shape in feature_shapes)
        self.view = (math.prod(self.shape),) if dense else self.shape
        sides = self.view[:-1]
        self.grid = tuple(-(-side // STRIDE) for side in sides)
        rank, channels = len(sides), (self.view or (1,))[-1]
        linear = lambda i, o, **more: nnx.Linear(i, o, rngs=rngs, **more)
        if rank:
            size = (3,) * rank
            steps = (STRIDE,) * rank
            self.enter: nnx.Module = nnx.Conv(3 * channels, width, size, strides=steps, rngs=rngs)
            self.mix: nnx.Module = nnx.Conv(width, width, size, rngs=rngs)
        else:
            self.enter, self.mix = linear(3 * channels, width), linear(width, width)
        self.read = nnx.List(linear(s[-1], width) for s in feature_shapes)
        self.position = nnx.Param(jnp.zeros((*self.grid, width)))
        self.embed = Embedding(width, rngs=rngs)
        self.film = linear(width, 4 * width)
        zeros = nnx.initializers.zeros
        self.leave = linear(width, STRIDE**rank * channels, kernel_init=zeros)
        # Not weights: what `calibrated` measured.
        self.log_levels = nnx.Param(jnp.linspace(-5.0, 5.0, levels))
        self.errors = nnx.Param(jnp.full(levels, float(math.prod(self.shape))))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that make a head like this one, as plain lists and numbers for JSON."""
        return {
            "layers": list(self.layers),
            "feature_shapes": [list(shape) for shape in self.feature_shapes],
            "sigma_data": self.sigma_data,
            "width": self.position.shape[-1],
            "levels": self.errors.shape[0],
        }

    def __call__(self, features: tuple[Array, ...], y: Sample, x0: Sample, w: Scalar) -> Sample:
        """Return the diagonal of d x0/d y, of the shape of y.

        Args:
            features: outputs of `layers`.
            y: the noisy sample divided by alpha.
            x0: the denoised sample.
            w: noise level sigma/alpha.

        Raises:
            ValueError: if y has another shape than this head's.
        """
        check_shape(y, self.shape)
        s, y, x0 = self.sigma_data, y.reshape(self.view), x0.reshape(self.view)
        total = jnp.sqrt(w**2 + s**2)
        inputs = jnp.concatenate([y / total, x0 / s, (y - x0) / w], -1)
        h = self.enter(inputs[None])[0] if self.grid else self.enter(inputs)
        for layer, feature in zip(self.read, features, strict=True):
            h = h + _resized(layer, feature, self.grid)
        film = self.film(self.embed(0.25 * jnp.log(w / s)))
        scale, shift, scale_out, shift_out = jnp.split(film, 4)
        h = nnx.silu((h + self.position) * (1 + scale) + shift)
        mixed = self.mix(h[None])[0] if self.grid else self.mix(h)
        h = nnx.silu((h + mixed) * (1 + scale_out) + shift_out)
        return (s / total) ** 2 * (1 + _unfold(self.leave(h), self.view).reshape(self.shape))

    def error(self, w: Scalar) -> Scalar:
        """Return the root mean square error of the predicted trace at the noise level w."""
        return jnp.interp(jnp.log(w), self.log_levels[...], self.errors[...])


def _resized(layer: nnx.Linear, feature: Array, grid: tuple[int, ...]) -> Array:
    """Apply the layer, and bring the result to the grid; features of no grid go to all of it."""
    while feature.ndim > len(grid) + 1 and feature.shape[0] == 1:  # the layers' batch axis
        feature = feature[0]
    sides = feature.shape[:-1]
    if len(sides) != len(grid):
        return layer(jnp.mean(feature, tuple(range(feature.ndim - 1))))
    h = layer(feature)
    return jax.image.resize(h, (*grid, h.shape[-1]), "linear") if sides != grid else h


def _unfold(h: Array, shape: tuple[int, ...]) -> Array:
    """Move channels into pixels, and cut to the shape."""
    *grid, _ = h.shape
    rank, channels = len(grid), shape[-1]
    h = h.reshape(*grid, *(STRIDE,) * rank, channels)
    order = [axis for i in range(rank) for axis in (i, i + rank)]
    h = h.transpose(*order, 2 * rank).reshape(*(STRIDE * side for side in grid), channels)
    return h[tuple(slice(side) for side in shape)]
