"""Check that a network can be called: its arguments, and the mode of Flax NNX layers.

In training mode BatchNorm and Dropout change their own state when they are called. Inside a
transformation of JAX this fails with an error that does not say so.
"""

import inspect
import types
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from dgjax.typing import captured, check_made, takes

__all__ = ["check_inference_mode", "check_network"]


def check_network(network: Any) -> None:
    """Raise a ValueError if a network is a class, PyTorch, or a function of other arguments.

    Args:
        network: what the user passed as the network.

    Raises:
        ValueError: if it cannot be called with (x, t, cond).
    """
    if isinstance(network, type):
        check_made("network", network)
    if isinstance(network, types.FunctionType) and not takes(network, 3):
        raise ValueError(
            "network must be a function (x, t, cond) -> out of one sample, but "
            f"{network.__name__} takes {inspect.signature(network)}"
        )
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(network).__mro__}
    if "torch.nn.modules.module.Module" in kinds:  # without importing torch
        raise ValueError(
            "network is a PyTorch module: pass dgjax.torch_network(module), which JAX can call"
        )


def check_inference_mode(network: Any) -> None:
    """Raise a ValueError if a network has layers in training mode.

    Args:
        network: a function, a pytree or a Flax NNX module. Modules that a function reads from
            outside itself are checked too.

    Raises:
        ValueError: if a Dropout with random numbers of its own is not deterministic, or a BatchNorm
            does not use its running averages.
    """
    for module in _modules(network):
        for path, layer in nnx.iter_modules(module):
            if _trains(layer):
                name = ".".join(map(str, path)) or "network"
                raise ValueError(
                    f"{name} ({type(layer).__name__}) is in training mode, in which it changes its "
                    "own state: call network.eval() before you make the model"
                )


def _trains(layer: Any) -> bool:
    if isinstance(layer, nnx.Dropout):
        # Without random numbers of its own it is told by its caller when to act.
        return layer.rngs is not None and layer.rate > 0 and not layer.deterministic
    return isinstance(layer, nnx.BatchNorm) and not layer.use_running_average


def _modules(network: Any) -> Iterator[nnx.Module]:
    is_module = lambda node: isinstance(node, nnx.Module)
    for node in jax.tree.leaves(network, is_leaf=is_module):
        if is_module(node):
            yield node
        elif isinstance(node, types.FunctionType):
            yield from filter(is_module, captured(node))
