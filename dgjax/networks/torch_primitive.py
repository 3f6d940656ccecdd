"""A JAX primitive that evaluates a PyTorch function and all its derivatives.

A `Program` is a function of PyTorch tensors, each with one leading batch axis, that treats the
entries of the batch independently. The primitive is closed under the transformations of JAX:

- jvp: the derivative of a program is the program `Jvp` of it, by `torch.func.jvp`;
- transposition: the transpose of `Jvp` is `Vjp`, by `torch.func.vjp`, and that of `Vjp` is `Jvp`;
- vmap: the mapped axis is folded into the batch axis;
- jit: `jax.pure_callback`.

JAX tells programs apart by equality. Two programs are equal if their functions are the same object.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

__all__ = ["Function", "Jvp", "Program", "Vjp", "evaluate_program"]

Tensor = Any  # a torch.Tensor; PyTorch is imported where it is used


class Program(Protocol):
    """A function of PyTorch tensors with a leading batch axis, that JAX can differentiate."""

    def run(self, *operands: Tensor) -> tuple[Tensor, ...]:
        """Evaluate the program on tensors."""
        ...

    def results(self, operands: Sequence[jax.core.ShapedArray]) -> list[jax.core.ShapedArray]:
        """Return the shapes and dtypes of the results."""
        ...


@dataclass(frozen=True)
class Function:
    """A function of tensors whose result has the shape and dtype of its first operand.

    Attributes:
        function: the function; it must be hashable.
    """

    function: Callable[..., Tensor]

    def run(self, *operands: Tensor) -> tuple[Tensor, ...]:
        """Call the function."""
        return (self.function(*operands),)

    def results(self, operands):
        """Return the shape and dtype of the first operand."""
        return [operands[0]]


@dataclass(frozen=True)
class Jvp:
    """The derivative of a program along tangents of some of its operands.

    Its operands are those of the program, then the tangents. It is linear in the tangents.

    Attributes:
        program: the program.
        along: indices of the operands that have tangents.
    """

    program: Program
    along: tuple[int, ...]

    def run(self, *operands: Tensor) -> tuple[Tensor, ...]:
        """Push the tangents forward."""
        import torch

        count = len(operands) - len(self.along)
        primals, tangents = operands[:count], operands[count:]
        function = _of_some(self.program, primals, self.along)
        with _forward_mode():
            return torch.func.jvp(function, tuple(primals[i] for i in self.along), tangents)[1]

    def results(self, operands):
        """Return the shapes and dtypes of the program's results."""
        return self.program.results(operands[: len(operands) - len(self.along)])


@contextmanager
def _forward_mode() -> Iterator[None]:
    """Avoid the forms of PyTorch's functions that have no forward derivative.

    Fused attention has none, and that of group normalization fails on arrays that are not
    contiguous, such as those after attention over pixels (PyTorch 2.13).
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.overrides import TorchFunctionMode

    class ContiguousNorms(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (torch.group_norm, torch.nn.functional.group_norm):
                args = (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
            return function(*args, **(kwargs or {}))

    with sdpa_kernel(SDPBackend.MATH), ContiguousNorms():
        yield


@dataclass(frozen=True)
class Vjp:
    """The transposed derivative of a program: cotangents of some of its operands.

    Its operands are those of the program, then the cotangents of its results. It is linear in the
    cotangents.

    Attributes:
        program: the program.
        along: indices of the operands whose cotangents are the results.
        count: number of operands of the program.
    """

    program: Program
    along: tuple[int, ...]
    count: int

    def run(self, *operands: Tensor) -> tuple[Tensor, ...]:
        """Pull the cotangents back."""
        import torch

        primals, cotangents = operands[: self.count], operands[self.count :]
        function = _of_some(self.program, primals, self.along)
        pull = torch.func.vjp(function, *(primals[i] for i in self.along))[1]
        return pull(cotangents)

    def results(self, operands):
        """Return the shapes and dtypes of the operands in `along`."""
        return [operands[i] for i in self.along]


def _of_some(program: Program, operands: Sequence[Tensor], some: Sequence[int]) -> Callable:
    """The program as a function of some of its operands, with the others held constant."""

    def function(*values):
        filled = list(operands)
        for i, value in zip(some, values, strict=True):
            filled[i] = value
        return program.run(*filled)

    return function


def evaluate_program(program: Program, *operands: Array) -> list[Array]:
    """Evaluate a program.

    Args:
        program: what to evaluate. Equal programs share their compiled code.
        *operands: arrays with the same leading axis.

    Returns:
        The results, as arrays.
    """
    return _torch.bind(*operands, program=program)


_torch = Primitive("torch")
_torch.multiple_results = True


@_torch.def_abstract_eval
def _abstract(*operands, program):
    return program.results(operands)


@_torch.def_impl
def _callback(*operands, program):
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.results(operands)]
    return jax.pure_callback(lambda *arrays: _on_host(program, arrays), shapes, *operands)


mlir.register_lowering(_torch, mlir.lower_fun(_callback, multiple_results=True))


_one_at_a_time = threading.Lock()  # the levels of torch.func are those of the whole process


def _on_host(program: Program, arrays: Sequence[Any]) -> list[np.ndarray]:
    """Evaluate a program on arrays of the host. Several devices may call at once."""
    import torch

    with _one_at_a_time, torch.no_grad():  # torch.func differentiates all the same
        # A copy: arrays of JAX may not be written to, and a network may work in place.
        results = program.run(*(torch.from_numpy(np.array(a)) for a in arrays))
        return [result.detach().cpu().contiguous().numpy() for result in results]


def _jvp(primals, tangents, *, program):
    out = evaluate_program(program, *primals)
    along = tuple(i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero))
    if not along:
        return out, [ad.Zero.from_primal_value(a) for a in out]  # type: ignore[attr-defined]
    moved = [ad.instantiate_zeros(tangents[i]) for i in along]
    return out, evaluate_program(Jvp(program, along), *primals, *moved)


def _transpose(cotangents, *operands, program):
    linear = tuple(i for i, a in enumerate(operands) if ad.is_undefined_primal(a))
    known = [a for a in operands if not ad.is_undefined_primal(a)]
    first = len(operands) - len(linear)
    if isinstance(program, Function) or linear != tuple(range(first, len(operands))):
        raise NotImplementedError("a PyTorch function is linear in its tangents only")
    transposed: Program = Jvp(program.program, program.along)
    if isinstance(program, Jvp):
        transposed = Vjp(program.program, program.along, first)
    given = [ad.instantiate_zeros(a) for a in cotangents]
    return [None] * first + evaluate_program(transposed, *known, *given)


def _batch(operands, axes, *, program):
    size = next(a.shape[d] for a, d in zip(operands, axes, strict=True) if d is not None)

    def fold(a, axis):
        if axis is None:
            a = jnp.broadcast_to(a[None], (size, *a.shape))
        else:
            a = jnp.moveaxis(a, axis, 0)
        return a.reshape(size * a.shape[1], *a.shape[2:])

    out = evaluate_program(program, *map(fold, operands, axes))
    return [a.reshape(size, -1, *a.shape[1:]) for a in out], [0] * len(out)


ad.primitive_jvps[_torch] = _jvp
ad.primitive_transposes[_torch] = _transpose
batching.primitive_batchers[_torch] = _batch
