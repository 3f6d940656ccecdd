"""Array types and the small helpers that every package uses.

Library functions act on one sample `x` of any shape. Use `jax.vmap` for a batch.
"""

import contextlib
import dataclasses
import dis
import functools
import inspect
import reprlib
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, dtypes
from jax.tree_util import GetAttrKey, Partial, register_pytree_with_keys
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

Scalar: TypeAlias = Float[Array, ""]
Sample: TypeAlias = Float[Array, "..."]
Key: TypeAlias = PRNGKeyArray
LinearMap: TypeAlias = Callable[[Sample], Sample]
Cond: TypeAlias = PyTree[Any]

T = TypeVar("T")

SHOWN = 4  # numbers of an array or a list that are shown

__all__ = [
    "Cond",
    "Key",
    "LinearMap",
    "Sample",
    "Scalar",
    "as_float",
    "captured",
    "check_made",
    "concrete",
    "inner",
    "register_dataclass",
    "safe_sqrt",
    "short_fields",
    "short_repr",
    "takes",
]


def register_dataclass(cls: type[T]) -> type[T]:
    """Register a dataclass as a pytree.

    Fields with `metadata={"static": True}` are part of the tree structure. All other fields are
    leaves (or subtrees).

    Use this in place of `jax.tree_util.register_dataclass`. With that function the structures of
    two different classes compare equal if both have the same number of leaves and equal static
    fields (jaxlib 0.10.2), so `jit` can run a program that was traced for the other class.

    Args:
        cls: a dataclass.

    Returns:
        The same class. Use it as a decorator above `@dataclass(frozen=True)`.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    static = tuple(f.name for f in fields if f.metadata.get("static", False))
    leaves = tuple(f.name for f in fields if f.name not in static)

    def values(obj, names):
        return tuple(getattr(obj, name) for name in names)

    def flatten_with_keys(obj):
        return tuple((GetAttrKey(n), getattr(obj, n)) for n in leaves), values(obj, static)

    def unflatten(meta, children):
        # Not by `cls(...)`: its `__post_init__` would see the placeholders of tree transformations.
        obj = object.__new__(cls)
        for name, value in zip((*static, *leaves), (*meta, *children), strict=True):
            object.__setattr__(obj, name, value)
        return obj

    def flatten(obj):
        return values(obj, leaves), values(obj, static)

    register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    if cls.__dataclass_params__.repr:  # type: ignore[attr-defined]
        cls.__repr__ = short_fields  # type: ignore[method-assign]
    return cls


def short_fields(obj: Any) -> str:
    """Return `Class(field=value, ...)` of a dataclass, each value by `short_repr`.

    Fields that are None are left out.
    """
    values = ((f.name, getattr(obj, f.name)) for f in dataclasses.fields(obj))
    shown = (f"{name}={short_repr(value)}" for name, value in values if value is not None)
    return f"{type(obj).__name__}({', '.join(shown)})"


def short_repr(value: Any) -> str:
    """Return one short line that tells what `value` is.

    An array of more than four numbers is shown by its dtype and shape, a network by its class and
    the number of its parameters, a function by its name, and of a long container the first items.
    """
    if isinstance(value, core.Tracer | jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _short_array(value)
    if isinstance(value, Partial):
        return short_repr(value.func)
    if isinstance(value, type | types.FunctionType | types.MethodType):
        return value.__qualname__.removeprefix("<locals>.").rpartition("<locals>.")[2]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list | Mapping):
        return _short_container(value)
    if dataclasses.is_dataclass(value):
        return repr(value)
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or leaves[0] is not value:  # a pytree with a class of its own
        return _short_network(value, leaves)
    return reprlib.repr(value)


def _short_array(value: Any) -> str:
    if not value.size or value.size > SHOWN or jnp.issubdtype(value.dtype, dtypes.extended):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return f"{value.dtype}{list(value.shape)}"
    numbers = np.asarray(value)
    return f"{numbers:.6g}" if numbers.ndim == 0 else np.array2string(numbers, precision=4)


def _short_container(value: Any) -> str:
    if isinstance(value, Mapping):
        items = [f"{key!r}: {short_repr(item)}" for key, item in value.items()]
        start, end = "{", "}"
    else:
        items = [short_repr(item) for item in value[: SHOWN + 1]]
        start, end = ("[", "]") if isinstance(value, list) else ("(", ")")
    if len(value) > SHOWN and not isinstance(value, Mapping):
        items = [*items[: SHOWN - 1], f"... {len(value)} in all"]
    return start + ", ".join(items) + ("," if start == "(" and len(value) == 1 else "") + end


def _short_network(value: Any, leaves: list) -> str:
    count = sum(int(np.prod(np.shape(leaf))) for leaf in leaves)
    for unit, size in (("M ", 10**6), ("k ", 10**3)):
        if count >= size:
            return f"{type(value).__name__} ({count / size:.1f} {unit}parameters)"
    return f"{type(value).__name__} ({count} parameters)"


def as_float(value: ArrayLike) -> Array:
    """Convert `value` to an array of the default floating dtype.

    Numbers stored this way are leaves of one type. A Python number or an array of another dtype
    would cause a new trace.
    """
    return jnp.asarray(value, dtype=jnp.result_type(float))


def concrete(value: Any) -> np.ndarray | None:
    """Return `value` as a NumPy array, or None if JAX is tracing it and its numbers are unknown."""
    return None if isinstance(value, core.Tracer) else np.asarray(value)


def check_made(name: str, value: Any, arguments: int | None = None) -> None:
    """Raise a ValueError if `value` is a class or a constructor that has not been called.

    Args:
        name: what `value` is called in the error message.
        value: what the user passed.
        arguments: how many arguments a function in this place takes; None if it cannot be one.

    Raises:
        ValueError: if `value` is a class, or a function of other arguments.
    """
    if isinstance(value, type):
        what = "class"
    elif isinstance(value, types.FunctionType) and not takes(value, arguments):
        what = "function"
    else:
        return
    called = value.__name__
    raise ValueError(
        f"{name} is the {what} {called} itself, not what it makes: call it, {called}(...)"
    )


def takes(function: Callable[..., Any], arguments: int | None) -> bool:
    """Return whether `function` can be called with this many positional arguments; None: never."""
    if arguments is None:
        return False
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def captured(function: Callable[..., Any]) -> list[Any]:
    """Return what a Python function reads from outside itself: closure, globals and defaults.

    Functions of the same module that it reads are followed.
    """
    found: list[Any] = []
    todo, seen = [function], {id(function)}
    while todo:
        current = todo.pop()
        known = current.__globals__
        values = [*(current.__defaults__ or ()), *(current.__kwdefaults__ or {}).values()]
        values += [known[name] for name in _global_names(current.__code__) if name in known]
        for cell in current.__closure__ or ():
            with contextlib.suppress(ValueError):  # the name is not bound yet
                values.append(cell.cell_contents)
        found += values
        for value in values:
            same_module = isinstance(value, types.FunctionType) and value.__globals__ is known
            if same_module and id(value) not in seen:
                seen.add(id(value))
                todo.append(value)
    return found


@functools.lru_cache(maxsize=1024)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    read = (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    return tuple(dict.fromkeys(read))


def inner(a: Sample, b: Sample) -> Scalar:
    """Return the inner product of two arrays of one shape."""
    return jnp.sum(a * b)


def safe_sqrt(value: Array) -> Array:
    """Return the square root, with the derivative 0 where `value` is 0.

    The derivative of `jnp.sqrt` is infinite there, and NaN after multiplication by 0.
    """
    zero = value == 0
    # NaN is not 0 and stays NaN. The 0 is a constant, so that it has no derivative.
    return jnp.where(zero, jnp.zeros_like(value), jnp.sqrt(jnp.where(zero, 1, value)))
