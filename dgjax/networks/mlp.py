"""A multilayer perceptron for vectors and other small samples."""

from math import prod

import jax.numpy as jnp
from flax import nnx

from dgjax.networks.embedding import Embedding
from dgjax.networks.inputs import check_shape
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["MLP"]


class MLP(nnx.Module):
    """A residual multilayer perceptron: `net(x, t, cond) -> out` on one sample of any shape.

    The sample is flattened. An embedding of t and the label is added in every hidden layer. A new
    network returns zeros.

    Args:
        shape: shape of one sample.
        width: units of each hidden layer.
        depth: number of hidden layers; all but the first are residual.
        num_classes: number of labels, or None for a network without labels. The label
            `num_classes`, like `cond` None, stands for no label.
        rngs: draws the initial weights.

    Raises:
        ValueError: if width or depth is not positive.
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
        """Apply the network to one sample.

        Args:
            x: a sample of `shape`.
            t: the noise level as the parametrization passes it.
            cond: a class label, or None.

        Returns:
            The network's prediction, of the same shape.

        Raises:
            ValueError: if x has another shape or the label is not one of this network.
        """
        check_shape(x, self.shape)
        embedding = self.embed(t, cond)
        h = nnx.silu(self.enter(x.reshape(-1)) + self.film[0](embedding))
        for layer, film in zip(self.hidden, self.film[1:], strict=True):
            h = h + nnx.silu(layer(h) + film(embedding))
        return self.leave(h).reshape(jnp.shape(x)).astype(x.dtype)
