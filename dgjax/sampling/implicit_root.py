"""Derivatives of a root by the implicit function theorem, without those of the search for it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from dgjax.typing import Scalar

__all__ = ["implicit_root"]


def implicit_root(
    function: Callable[..., Scalar],
    root: Scalar,
    value: Scalar,
    operands: Sequence[Any],
    *,
    valid: Array,
    slope: Callable[[Callable[[Scalar], Scalar], Scalar], Scalar],
) -> Scalar:
    """Return `root`, with the derivatives of the solution r of function(r, *operands) = value.

    They are dr = (d value - <d function/d operands, d operands>)/(d function/d r). Nothing is
    computed unless derivatives are taken.

    Args:
        function: function `(r, *operands) -> number`, which holds no traced values of its own.
        root: the solution, found in any way.
        value: of the function there.
        operands: arrays.
        valid: where it is False, `root` solves nothing and its derivatives are 0.
        slope: `(function of r, r) -> d function/d r`, by a mode of differentiation that the
            function has.
    """

    @jax.custom_jvp
    def solution(root, valid, value, *operands):
        del valid, value, operands
        return root

    def derivative(primals, tangents):
        root, valid, _, *operands = primals
        _, _, dvalue, *doperands = tangents
        moved = jnp.zeros_like(root) if isinstance(dvalue, SymbolicZero) else dvalue
        active = [i for i, d in enumerate(doperands) if not isinstance(d, SymbolicZero)]
        if active:

            def shifted(*some):
                filled = list(operands)
                for i, operand in zip(active, some, strict=True):
                    filled[i] = operand
                return function(root, *filled)

            primal, tangent = ([a[i] for i in active] for a in (operands, doperands))
            moved = moved - jax.jvp(shifted, primal, tangent)[1]
        rate = slope(lambda root: function(root, *operands), root)
        return root, jnp.where(valid, moved / jnp.where(valid, rate, 1), 0)

    solution.defjvp(derivative, symbolic_zeros=True)
    return solution(root, valid, value, *operands)
