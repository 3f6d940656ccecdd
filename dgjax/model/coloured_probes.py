"""Trace estimator for maps that couple neighbouring elements, such as denoisers of images.

The error of a Hutchinson probe comes from the off-diagonal entries of the map. In the Jacobian of
an image denoiser the largest of them couple neighbouring pixels. A colouring assigns one of a few
colours to each element of an array so that elements of one colour are far apart. A probe that is 0
outside one colour avoids the entries between neighbours (probing, Tang and Saad 2012).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from dgjax.model.divergence import check_count, rademacher, sampled_error
from dgjax.typing import Key, LinearMap, Sample, Scalar, register_dataclass

__all__ = ["Coloured", "colouring"]

REACH = 6  # largest distance between elements that `colouring` considers, along each axis


@lru_cache
def colouring(shape: tuple[int, ...], colours: int) -> Int[np.ndarray, "..."]:
    """Return the colour of each element of an array.

    The colour of the element at position (p_1, p_2, ...) in a channel is the number
    (p_1 + a p_2 + a^2 p_3 + ... + c channel) mod `colours`. The integers a and c minimize the sum
    of |distance|^-3 over pairs of one colour: the squared couplings of a denoiser fall about that
    fast. An array of three or more axes has its channels last; two channels are as far apart as
    two adjacent pixels.

    Args:
        shape: shape of one sample.
        colours: number of colours.

    Returns:
        Integers from 0 to `colours` - 1, of the given shape.
    """
    reach = [min(REACH, n - 1) for n in shape]
    offsets = np.argwhere(np.ones([2 * r + 1 for r in reach])) - reach
    offsets = offsets[offsets.any(1)]
    positions = np.moveaxis(np.indices(shape), 0, -1)
    channels = len(shape) > 2
    lengths = np.abs(offsets)
    if channels:
        lengths[:, -1] = np.minimum(lengths[:, -1], 1)
    strength = np.linalg.norm(lengths, axis=1) ** -3.0

    def steps() -> Iterator[np.ndarray]:
        for a, c in product(range(colours), range(colours) if channels else (1,)):
            pixel = [pow(a, axis, colours) for axis in range(len(shape) - channels)]
            yield np.array([*pixel, c] if channels else pixel)

    best = min(steps(), key=lambda step: strength[(offsets @ step) % colours == 0].sum())
    return (positions @ best) % colours


@register_dataclass
@dataclass(frozen=True)
class Coloured:
    """Estimate the trace by the sum over colours c of z_c^T A z_c.

    The probe z_c has random signs on colour c and zeros elsewhere. One estimate takes `colours`
    products. It is unbiased. Its variance is 2 sum A_jk^2 over pairs j != k of one colour, with A
    the symmetric part of the map. The mean of as many plain probes has that sum over all pairs,
    divided by `colours`. With one colour the estimator is `Hutchinson(repeats)`.

    Attributes:
        colours: products per estimate. For images 2, 5, 8 and 13 have a low variance for their
            cost.
        repeats: number n of independent estimates.

    Raises:
        ValueError: if either is not a positive int, or, when called, if there are more colours
            than elements.
    """

    colours: int = field(default=5, metadata={"static": True})
    repeats: int = field(default=1, metadata={"static": True})

    def __post_init__(self):
        check_count("colours", self.colours)
        check_count("repeats", self.repeats)

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " n"]:
        """Return independent unbiased estimates of the trace."""
        if self.colours > x.size:
            raise ValueError(
                f"{self.colours} colours exceed the dimension {x.size}; take fewer, or Exact()"
            )
        colour = jnp.asarray(colouring(x.shape or (1,), self.colours)).reshape(x.shape)
        masks = jax.nn.one_hot(colour, self.colours, axis=0, dtype=x.dtype)

        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(self.repeats))
        signs = jax.vmap(lambda key: rademacher(key, x))(keys)
        probes = (signs[:, None] * masks[None]).reshape(-1, *x.shape)
        # One axis for all products, not two: sums over one of 8 axes crash XLA on CPUs (0.10.2).
        products = jnp.sum(probes * jax.vmap(jvp)(probes), tuple(range(1, probes.ndim)))
        return jnp.sum(products.reshape(self.repeats, self.colours), 1)

    def standard_error(self, estimates: Float[Array, " n"], scatter: ArrayLike = jnp.inf) -> Scalar:
        """Return the standard error of the mean of `estimates`."""
        return sampled_error(estimates, scatter)
