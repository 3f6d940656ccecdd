"""Compile a solve once per structure of its arguments, so that callers need no `jax.jit`.

Arrays are arguments of the compiled program. Everything else (functions, solver options, Python
numbers) is constant in it and is compared by `==`; functions are the same only if they are one
object. What a function reads from outside itself (its closure, globals and attributes) is compared
by identity too, pytrees leaf by leaf: a rebound name, a dict changed in place or a trained Flax NNX
module is seen. A NumPy array changed in place is not.

Under an outer `jax.jit` the operations become part of the outer program, without a call of their
own.
"""

import functools
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, PartitionSpec
from jax.tree_util import Partial

from dgjax.model.manual_axes import explain_manual_axes
from dgjax.typing import captured

__all__ = ["compile_once", "on_any_mesh"]

PROGRAMS = 64  # kept at once; an evicted program is compiled again
LARGEST = 2**20  # numbers that the constants of a kept program may read from outside

Function = TypeVar("Function", bound=Callable[..., Any])


class _Static:
    """A constant of a program. It equals another of the same type, value and captured objects."""

    def __init__(self, value: Any):
        self.value, self.captured = value, tuple(jax.tree.leaves(list(_captured(value))))
        # A hash that the value lacks raises a TypeError here.
        self.hash = hash((type(value), value, *map(id, self.captured)))

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Static) or self.hash != other.hash:
            return False
        same = type(self.value) is type(other.value) and self.value == other.value
        return same and list(map(id, self.captured)) == list(map(id, other.captured))


def _captured(value: Any) -> Iterator[Any]:
    """Yield what `value` reads from outside itself: closure, globals, defaults, attributes."""
    if isinstance(value, types.MethodType):
        yield from _captured(value.__func__)
        yield from _captured(value.__self__)
    elif isinstance(value, functools.partial):
        yield from _captured(value.func)
    elif isinstance(value, types.FunctionType):
        yield from captured(value)
    elif not isinstance(value, type):
        yield from getattr(value, "__dict__", {}).values()


def compile_once(function: Function) -> Function:
    """Compile `function` once per structure of its arguments.

    Checks of concrete numbers must be made before: inside, all arrays are traced.

    Args:
        function: a function of pytrees whose result is a pytree of arrays.

    Returns:
        A function of the same arguments. If a constant among them has no hash, reads traced values
        or more than a million numbers, it is `function` itself that runs.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        dynamic = [leaf if _is_array(leaf) else None for leaf in leaves]
        try:
            static = tuple(None if _is_array(leaf) else _Static(leaf) for leaf in leaves)
            inside = tuple(_Static(function) for function in _partial_functions((args, kwargs)))
            hash(structure)
        except TypeError:  # something has no hash
            return function(*args, **kwargs)
        constants = [s for s in (*static, *inside) if s is not None]
        arrays = [value for s in constants for value in s.captured if _is_array(value)]
        traced = any(isinstance(array, Tracer) for array in arrays)
        if traced or sum(array.size for array in arrays) > LARGEST:
            return function(*args, **kwargs)
        return _program(function, structure, static, inside)(dynamic)

    return call  # type: ignore[return-value]


@functools.lru_cache(maxsize=PROGRAMS)
def _program(
    function: Callable[..., Any], structure: Any, static: tuple[Hashable, ...], inside: Hashable
) -> Callable[[list], Any]:
    del inside  # only tells programs apart

    def run(dynamic: list) -> Any:
        pairs = zip(static, dynamic, strict=True)
        leaves = [d if s is None else s.value for s, d in pairs]  # type: ignore[attr-defined]
        args, kwargs = jax.tree.unflatten(structure, leaves)
        return function(*args, **kwargs)

    return jax.jit(run, inline=True)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _partial_functions(tree: Any) -> Iterator[Callable[..., Any]]:
    """Yield the functions of all `Partial` in a tree. They are structure, not leaves."""
    for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Partial)):
        if isinstance(node, Partial):
            yield node.func
            yield from _partial_functions((node.args, node.keywords))


def on_any_mesh(function: Function) -> Function:
    """Run `function` on meshes with explicit axes too, by making their axes automatic inside.

    Args:
        function: a function of pytrees whose result is a pytree of arrays.

    Returns:
        A function of the same arguments.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
        if not explicit and any(map(_on_explicit_axes, jax.tree.leaves((args, kwargs)))):
            raise ValueError(
                "the arrays lie on a mesh with explicit axes that is not in use: write "
                "`with jax.set_mesh(mesh):` around the call, or give jax.make_mesh "
                "axis_types=(jax.sharding.AxisType.Auto,)"
            )
        run: Callable[..., Any] = _automatic(function) if explicit else function
        return explain_manual_axes(run)(*args, **kwargs)

    return call  # type: ignore[return-value]


def _on_explicit_axes(leaf: Any) -> bool:
    if not isinstance(leaf, Tracer):
        return False
    return AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types


def _automatic(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        arrays = [leaf for leaf in leaves if _is_array(leaf)]

        def run(*arrays: Any) -> Any:
            given = iter(arrays)
            filled = [next(given) if _is_array(leaf) else leaf for leaf in leaves]
            args, kwargs = jax.tree.unflatten(structure, filled)
            return function(*args, **kwargs)

        return jax.sharding.auto_axes(run, out_sharding=PartitionSpec())(*arrays)

    return call
