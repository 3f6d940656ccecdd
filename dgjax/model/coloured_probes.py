"""Trace estimates for maps that couple neighbours, as the denoisers of images do.

A Hutchinson probe of random signs is off by what lies outside of the diagonal, and in the Jacobian
of a denoiser that is mostly between neighbouring pixels. Probes that live on one colour each of a
lattice colouring never see two neighbours at once (probing: Tang and Saad 2012).
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

REACH = 6  # neighbours that a colouring looks at, along each axis


@lru_cache
def colouring(shape: tuple[int, ...], colours: int) -> Int[np.ndarray, "..."]:
    """Colour of each place of an array: (p_1 + a p_2 + a^2 p_3 + ... + c channel) mod `colours`.

    Of all a and c those whose places of one colour are farthest apart: with the least sum of
    |distance|^-3 over pairs, which is how the squares of a denoiser's couplings fall. The last
    axis of three is of channels, each as far from any other as a pixel is from the next.
    """
    reach = [min(REACH, n - 1) for n in shape]
    offsets = np.argwhere(np.ones([2 * r + 1 for r in reach])) - reach
    offsets = offsets[offsets.any(1)]
    places = np.moveaxis(np.indices(shape), 0, -1)
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
    return (places @ best) % colours


@register_dataclass
@dataclass(frozen=True)
class Coloured:
    """Hutchinson's estimate by colours: sum over c of z_c^T A z_c, z_c random signs on colour c.

    One estimate takes `colours` products. It is unbiased, and its variance is 2 sum of A_jk^2 over
    pairs j != k of one colour (A the symmetric part), where as many plain probes have that sum
    over all pairs, divided by `colours`. With one colour it is `Hutchinson(repeats)`.

    Args:
        colours: products to an estimate. For images 2, 5, 8 and 13 are good for their number.
        repeats: independent estimates.

    Raises:
        ValueError: if either is not a positive int, or, when used, there are more colours than
            elements.
    """

    colours: int = field(default=5, metadata={"static": True})
    repeats: int = field(default=1, metadata={"static": True})

    def __post_init__(self):
        check_count("colours", self.colours)
        check_count("repeats", self.repeats)

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " n"]:
        if self.colours > x.size:
            raise ValueError(
                f"{self.colours} colours exceed the dimension {x.size}: take fewer, or Exact()"
            )
        colour = jnp.asarray(colouring(x.shape or (1,), self.colours)).reshape(x.shape)
        masks = (colour == jnp.arange(self.colours).reshape(-1, *[1] * x.ndim)).astype(x.dtype)

        def estimate(key):
            probes = rademacher(key, x) * masks
            return jnp.sum(probes * jax.vmap(jvp)(probes))

        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(self.repeats))
        return jax.vmap(estimate)(keys)

    def standard_error(self, estimates: Float[Array, " n"], scatter: ArrayLike = jnp.nan) -> Scalar:
        return sampled_error(estimates, scatter)
