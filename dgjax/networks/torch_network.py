"""Any PyTorch network as a network of dgjax.

The weights stay in PyTorch and are constants to JAX: derivatives by x, t and the condition are
exact, and there are none by the weights. Each evaluation calls PyTorch from the compiled program,
through the memory of the host.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from dgjax.networks.torch_primitive import Function, evaluate_program
from dgjax.typing import Cond, Sample, Scalar, as_float, register_dataclass

__all__ = ["TorchNetwork", "torch_network"]

Tensor = Any  # a torch.Tensor; PyTorch is imported where it is used


@register_dataclass
@dataclass(frozen=True)
class TorchNetwork:
    """A PyTorch function as a network `(x, t, cond) -> out` of one sample. Made by `torch_network`.

    Attributes:
        module: the PyTorch function of a batch.
        output: picks the result from what the function returns.
        channels: where the function has the channels of a batch.
        dtype: of the function's floating arguments; None leaves them as they are.
        device: on which the function computes.
        time_scale: the function gets t times this.
    """

    module: Callable[..., Any] = field(metadata={"static": True})
    output: Callable[[Any], Tensor] = field(metadata={"static": True})
    channels: str = field(metadata={"static": True})
    dtype: Any = field(metadata={"static": True})
    device: Any = field(metadata={"static": True})
    time_scale: Scalar

    def __call__(self, x: Sample, t: Scalar, cond: Cond = None) -> Sample:
        """Evaluate the network at one sample, or at a batch under `jax.vmap`."""
        leaves, structure = jax.tree.flatten(cond)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        operands = [a[None] for a in (x, self.time_scale * t, *leaves)]
        call = _Call(self.module, self.output, self.channels, self.dtype, self.device, structure)
        _check(call, tuple((a.shape, a.dtype.name) for a in operands))
        (out,) = evaluate_program(Function(call), *operands)
        return out[0]


def torch_network(
    module: Callable[..., Any],
    *,
    channels: Literal["first", "last"] = "first",
    output: Callable[[Any], Tensor] | None = None,
    time_scale: ArrayLike = 1.0,
    dtype: Any = None,
    device: Any = None,
) -> TorchNetwork:
    """Make a network from a PyTorch module or function.

    Any function of tensors will do, as long as the entries of a batch do not interact and
    PyTorch can differentiate it (`torch.func`). Everything of dgjax then takes it as any other
    network, under `jit`, `vmap`, `grad` by x, t and the condition, and `jax.linearize`. The weights
    are constants to JAX: train them in PyTorch.

    Args:
        module: called with a batch of samples (n, ...), their times (n,) and the condition: a
            mapping as keyword arguments, a tuple or list as further arguments, an array as one,
            and nothing if there is none. Leaves of the condition have a leading axis n too.
            Integers arrive as int64.
        channels: where the module has the channels of a picture. Samples of dgjax are (H, W, C);
            with "first" the module gets and returns (n, C, H, W), and in the same way for volumes.
            Vectors are passed as they are.
        output: picks the tensor of the shape of x from what the module returns. By default it is
            the tensor itself, the attribute `sample`, or the first entry of a tuple.
        time_scale: the module gets t times this, for instance 1000.
        dtype: floating dtype that the module computes in; by default that of its parameters.
        device: of PyTorch, on which the module computes; by default that of its parameters.

    Returns:
        A network for `field`.

    Raises:
        ValueError: if the module is in training mode or `channels` is another word; when the
            network is called, if its result has not the shape of x.
    """
    if channels not in ("first", "last"):
        raise ValueError(f'channels must be "first" or "last", got {channels!r}')
    if getattr(module, "training", False):
        raise ValueError(
            "the module is in training mode, in which dropout and batch normalization depend on "
            "the batch: call module.eval() before you pass it"
        )
    own = next(iter(module.parameters()), None) if hasattr(module, "parameters") else None
    if own is not None:
        dtype = own.dtype if dtype is None else dtype
        device = own.device if device is None else device
    pick = _pick if output is None else output
    return TorchNetwork(module, pick, channels, dtype, device, as_float(time_scale))


def _pick(out: Any) -> Tensor:
    """Return the tensor in what a network returned."""
    if isinstance(out, tuple | list):
        return out[0]
    return getattr(out, "sample", out) if not hasattr(out, "shape") else out


@dataclass(frozen=True)
class _Call:
    """Calls the module with tensors of one batch: x, times and the leaves of the condition."""

    module: Callable[..., Any]
    output: Callable[[Any], Tensor]
    channels: str
    dtype: Any
    device: Any
    structure: Any

    def __call__(self, *operands: Tensor) -> Tensor:
        import torch

        x, t, *leaves = (self._moved(a) for a in operands)
        cond = jax.tree.unflatten(self.structure, leaves)
        first = self.channels == "first" and x.ndim > 2
        x = x.movedim(-1, 1).contiguous() if first else x  # PyTorch's norms need it contiguous
        out = self.output(_called(self.module, x, t, cond))
        if not isinstance(out, torch.Tensor):
            raise ValueError(f"the network returned {type(out).__name__}: pass output=")
        out = out.movedim(1, -1) if first and out.ndim > 2 else out
        return out.to(operands[0])  # its dtype and device

    def _moved(self, a: Tensor) -> Tensor:
        import torch

        if a.is_floating_point():
            return a.to(device=self.device, dtype=self.dtype)
        return a.to(device=self.device, dtype=a.dtype if a.dtype == torch.bool else torch.int64)


def _called(module: Callable[..., Any], x: Tensor, t: Tensor, cond: Any) -> Any:
    if cond is None:
        return module(x, t)
    if isinstance(cond, Mapping):
        return module(x, t, **cond)
    return module(x, t, *cond) if isinstance(cond, tuple | list) else module(x, t, cond)


@functools.lru_cache(maxsize=256)
def _check(call: _Call, shapes: tuple[tuple[tuple[int, ...], str], ...]) -> None:
    """Call the module once with zeros, so that its own errors and wrong shapes arise here."""
    import torch

    zeros = [torch.from_numpy(np.zeros(shape, dtype)) for shape, dtype in shapes]
    with torch.no_grad():
        out = call(*zeros)
    if out.shape != zeros[0].shape:
        raise ValueError(
            f"the network returned {tuple(out.shape[1:])} for a sample of shape "
            f"{tuple(zeros[0].shape[1:])}; pick the part that is the prediction with output="
        )
