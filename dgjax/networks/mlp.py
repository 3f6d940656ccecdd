"""A multilayer perceptron for vectors and other small samples."""

from math import prod

import jax.numpy as jnp
from flax import nnx

from dgjax.networks.embedding import Embedding
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["MLP"]


class MLP(nnx.Module):
    """`net(x, t, cond) -> out` on ONE sample of `shape`; `out` has its shape and starts as zero.

    The embedded noise level and label enter every hidden layer, and each layer but the first
    adds to the one before it.

    Args:
        shape: of one sample; it is flattened inside.
        width: units of each hidden layer.
        depth: number of hidden layers.
        num_classes: number of labels, or None for a network that takes none. The label
            `num_classes`, like `cond` None, stands for no label.
        rngs: makes the initial weights, and is not kept.

    Raises:
        ValueError: if width or depth is not positive; when called, if x has another shape or a
            label is given that the network cannot take.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 256,
        depth: int = 4,
        num_classes: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth must be positive, got {width} and {depth}")
        self.shape = tuple(shape)
        size = prod(self.shape)
        self.embed = Embedding(width, num_classes, rngs=rngs)
        self.enter = nnx.Linear(size, width, rngs=rngs)
        self.hidden = nnx.List(nnx.Linear(width, width, rngs=rngs) for _ in range(depth - 1))
        self.film = nnx.List(nnx.Linear(width, width, rngs=rngs) for _ in range(depth))
        self.leave = nnx.Linear(width, size, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Sample, t: Scalar, cond: Cond = None) -> Sample:
        if x.shape != self.shape:
            raise ValueError(f"x has shape {x.shape} and this network takes {self.shape}")
        embedding = self.embed(t, cond)
        h = nnx.silu(self.enter(x.reshape(-1)) + self.film[0](embedding))
        for layer, film in zip(self.hidden, self.film[1:], strict=True):
            h = h + nnx.silu(layer(h) + film(embedding))
        return self.leave(h).reshape(jnp.shape(x)).astype(x.dtype)
