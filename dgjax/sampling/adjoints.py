"""Adjoints: how derivatives are taken through a solve.

The steps of a fixed grid need none: without an adjoint they serve both modes. Adaptive steps use
`diffrax.RecursiveCheckpointAdjoint` by default, which takes little memory and serves reverse mode
only (`grad`, `vjp`, `jacrev`). `FORWARD` serves forward mode only, and `BOTH_MODES` serves both.
A derivative that an adjoint does not serve is refused with the fix, inside of `jit` too: the
arguments and the results of a solve pass through an identity whose derivative refuses either to be
evaluated or to be transposed.
"""

import math
from functools import partial
from typing import TypeAlias, TypeVar

import diffrax
import equinox
import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = [
    "BOTH_MODES",
    "FORWARD",
    "Adjoint",
    "default_adjoint",
    "guard_inputs",
    "guard_results",
    "serves_forward",
]

Adjoint: TypeAlias = diffrax.AbstractAdjoint
T = TypeVar("T")

FORWARD = diffrax.ForwardMode()
"""The adjoint for forward mode: `jax.jvp` and `jax.jacfwd`."""


class BothModes(diffrax.DirectAdjoint):
    """The adjoint for both modes, for `jax.linearize` and `jax.hessian` too.

    In reverse mode n steps keep about 2 sqrt(n) states, where `diffrax.DirectAdjoint` keeps all
    intermediate results of 16 steps.
    """

    @property
    def _loop(self):
        loop = super()._loop

        def run(*, outer_while_loop, max_steps, **kwargs):
            def while_loop(cond_fun, body_fun, init_val, **options):
                body = jax.checkpoint(body_fun, prevent_cse=False)
                base = max(2, math.ceil(math.sqrt(max_steps)))  # two nested loops
                return outer_while_loop(cond_fun, body, init_val, base=base, **options)

            return loop(outer_while_loop=while_loop, max_steps=max_steps, **kwargs)

        return run


BOTH_MODES = BothModes()
"""The adjoint for both modes: `jax.grad`, `jax.jvp`, `jax.linearize` and `jax.hessian`."""


def guard_inputs(adjoint: Adjoint | None, inputs: T) -> T:
    """Make forward mode an error that states the fix, if the adjoint serves reverse mode only.

    Args:
        adjoint: of the solve; None is the scan of a fixed grid.
        inputs: a pytree of all that the solve can be differentiated in.

    Returns:
        `inputs`.
    """
    if not isinstance(adjoint, diffrax.RecursiveCheckpointAdjoint):
        return inputs
    return _map_floating(reverse_only.bind, inputs)


def guard_results(adjoint: Adjoint | None, results: T) -> T:
    """Make reverse mode an error that states the fix, if the adjoint serves forward mode only.

    Args:
        adjoint: of the solve; None is the scan of a fixed grid.
        results: a pytree of all that the solve returns.

    Returns:
        `results`.
    """
    if not isinstance(adjoint, diffrax.ForwardMode):
        return results
    return _map_floating(forward_only.bind, results)


def default_adjoint(controller: diffrax.AbstractStepSizeController | None) -> Adjoint | None:
    """Return the adjoint of a solve when none is given: None for the steps of a fixed grid.

    Args:
        controller: of adaptive steps, or None.
    """
    return None if controller is None else diffrax.RecursiveCheckpointAdjoint()


def serves_forward(adjoint: Adjoint | None) -> bool:
    """Return whether forward mode works; None is the scan of a fixed grid, where it does."""
    return adjoint is None or isinstance(adjoint, diffrax.ForwardMode | diffrax.DirectAdjoint)


def _map_floating(function, tree: T) -> T:
    return jax.tree.map(lambda a: function(a) if equinox.is_inexact_array(a) else a, tree)


def _refuse_forward(*args, **kwargs):
    raise TypeError(
        "this solve has an adjoint for reverse mode (grad) only: for jvp or jacfwd pass "
        "adjoint=dgjax.FORWARD, for linearize or hessian adjoint=dgjax.BOTH_MODES"
    )


def _refuse_reverse(*args, **kwargs):
    raise TypeError(
        "this solve has an adjoint for forward mode (jvp, jacfwd) only: for grad pass "
        "adjoint=dgjax.BOTH_MODES"
    )


def _identity(x):
    return x


def _batched(primitive, args, axes):
    return primitive.bind(*args), *axes


def _make_identity(name: str) -> Primitive:
    primitive = Primitive(name)
    primitive.def_abstract_eval(_identity)
    primitive.def_impl(_identity)
    mlir.register_lowering(primitive, mlir.lower_fun(_identity, multiple_results=False))
    batching.primitive_batchers[primitive] = partial(_batched, primitive)
    return primitive


def _set_derivative(primitive: Primitive, derivative: Primitive) -> None:
    def jvp(primals, tangents):
        (x,), (dx,) = primals, tangents
        return primitive.bind(x), dx if isinstance(dx, ad.Zero) else derivative.bind(dx)

    ad.primitive_jvps[primitive] = jvp


reverse_only = _make_identity("dgjax_reverse_only")
_reverse_tangent = Primitive("dgjax_reverse_only_tangent")
_reverse_tangent.def_abstract_eval(_identity)
_reverse_tangent.def_impl(_refuse_forward)
mlir.register_lowering(_reverse_tangent, _refuse_forward)
batching.primitive_batchers[_reverse_tangent] = _refuse_forward
ad.deflinear2(_reverse_tangent, lambda cotangent, x: [cotangent])
_set_derivative(reverse_only, _reverse_tangent)

forward_only = _make_identity("dgjax_forward_only")
_forward_tangent = _make_identity("dgjax_forward_only_tangent")
ad.deflinear2(_forward_tangent, _refuse_reverse)
_set_derivative(forward_only, _forward_tangent)
