"""Precision of the network's computations during training.

With "bfloat16", matrix products and convolutions read weights and activations rounded to bfloat16,
and their results are rounded too, as are sums of such results: the residual stream and the
network's output. Accelerators sum inside a product in float32. Weights, optimiser state, moving
averages, normalisation layers and the loss stay in float32. A trained model always computes in
float32, because bfloat16 changes a log-density by several nats.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PyTree

from dgjax.checkpoints.configuration import unknown_name

__all__ = ["PRECISIONS", "in_precision"]

PRECISIONS = ("float32", "bfloat16")
PRODUCT_LAYERS = (nnx.Conv, nnx.Linear, nnx.LinearGeneral)


def in_precision(
    build: Callable[[], PyTree[Array]], precision: str
) -> Callable[[PyTree[Array]], PyTree[Array]]:
    """Return a function that makes a network compute its products in the given precision.

    Args:
        build: makes a Flax NNX network with the structure of those that the function will get. It
            is evaluated for its shapes only.
        precision: "float32" or "bfloat16".

    Returns:
        A differentiable function from a network to a network with the same weights.

    Raises:
        ValueError: if the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision == "float32":
        return lambda network: network
    template = nnx.eval_shape(build)
    for _, node in nnx.iter_graph(template):
        if isinstance(node, PRODUCT_LAYERS):
            node.dtype = jnp.dtype(precision)
    structure = jax.tree.structure(template)
    # Flax keeps a layer's precision in its pytree structure, so the weights get a new structure.
    return lambda network: jax.tree.unflatten(structure, jax.tree.leaves(network))
