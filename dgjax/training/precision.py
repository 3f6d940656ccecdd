"""The precision that a network computes in while it is trained.

Its weights, their moments and averages, normalisations and the loss stay in float32. Matrix
products and convolutions read rounded copies and, on accelerators, sum in float32; what they give
is rounded, and so is what adds it up, such as the residual stream and the network's output. A
trained model always computes in float32: bfloat16 moves a log-density by nats.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PyTree

from dgjax.configuration import unknown_name

__all__ = ["PRECISIONS", "in_precision"]

PRECISIONS = ("float32", "bfloat16")
PRODUCTS = (nnx.Conv, nnx.Linear, nnx.LinearGeneral)


def in_precision(
    build: Callable[[], PyTree[Array]], precision: str
) -> Callable[[PyTree[Array]], PyTree[Array]]:
    """A function from a network to the same network with its products in `precision`.

    Args:
        build: makes a Flax NNX network with the structure of those that will come; only its
            shapes are evaluated.
        precision: "float32" or "bfloat16".

    Raises:
        ValueError: if the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision == "float32":
        return lambda network: network
    template = nnx.eval_shape(build)
    for _, node in nnx.iter_graph(template):
        if isinstance(node, PRODUCTS):
            node.dtype = jnp.dtype(precision)
    structure = jax.tree.structure(template)
    # flax keeps a layer's precision in its structure, so the weights move to another structure.
    return lambda network: jax.tree.unflatten(structure, jax.tree.leaves(network))
