"""Features of the noise level: sines and cosines, and a small MLP on them.

The modules that have weights name them as the library does whose checkpoints they read. So there
are two modules of random Fourier features.
"""

from collections.abc import Callable
from math import log

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.typing import Scalar

__all__ = ["EDMFourier", "Fourier", "Positional", "TimestepEmbedding", "sinusoids"]


def sinusoids(t: Scalar, frequencies: Float[Array, " n"]) -> Float[Array, " 2*n"]:
    """Return sines, then cosines, of `t` times each angular frequency."""
    angles = t * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class Positional(nnx.Module):
    """Sinusoids at fixed frequencies, as in DDPM (arXiv 2006.11239) and transformers.

    The frequencies fall geometrically from 1 to about 1/10,000. The module has no weights.

    Args:
        size: number of features, even.
        shift: n - `shift` divides the exponent of each of the n = size/2 frequencies. With 1 the
            lowest is exactly 1/10,000.
        cosines_first: whether cosines come before sines.
    """

    def __init__(self, size: int, shift: float, cosines_first: bool):
        self.size, self.shift, self.cosines_first = size, shift, cosines_first

    def __call__(self, t: Scalar) -> Float[Array, " size"]:
        """Return the features of `t`."""
        half = self.size // 2
        features = sinusoids(t, jnp.exp(-log(10_000) / (half - self.shift) * jnp.arange(half)))
        return jnp.roll(features, half) if self.cosines_first else features


class Fourier(nnx.Module):
    """Random Fourier features of log(t), as diffusers has them for NCSN++ (arXiv 2011.13456).

    Args:
        size: number of frequencies; there are twice as many features.
        rngs: draws the frequencies.
    """

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(16 * rngs.params.normal((size,)))

    def __call__(self, t: Scalar) -> Array:
        """Return the features of `t`, a positive noise level."""
        return sinusoids(2 * jnp.pi * jnp.log(t), self.weight[...])


class EDMFourier(nnx.Module):
    """Random Fourier features of t, as EDM (arXiv 2206.00364) has them; training keeps them fixed.

    Args:
        size: number of features, even.
        rngs: draws the frequencies.
    """

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.freqs = nnx.Param(16 * rngs.params.normal((size // 2,)))

    def __call__(self, t: Scalar) -> Array:
        """Return the features of `t`, in EDM log(sigma)/4."""
        return sinusoids(2 * jnp.pi * t, jax.lax.stop_gradient(self.freqs[...]))


class TimestepEmbedding(nnx.Module):
    """Two linear layers with an activation in between, named as in diffusers.

    Args:
        inputs: number of features.
        outputs: length of the result.
        activation: the activation.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Callable[[Array], Array] = nnx.silu,
        *,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.linear_1 = nnx.Linear(inputs, outputs, rngs=rngs)
        self.linear_2 = nnx.Linear(outputs, outputs, rngs=rngs)

    def __call__(self, features: Array) -> Array:
        """Return the embedding of the features."""
        return self.linear_2(self.activation(self.linear_1(features)))
