"""Array types and the small helpers that every package uses.

Library functions act on one sample `x` of any shape. Use `jax.vmap` for a batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import core
from jax.tree_util import GetAttrKey, register_pytree_with_keys
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

Scalar: TypeAlias = Float[Array, ""]
Sample: TypeAlias = Float[Array, "..."]
Key: TypeAlias = PRNGKeyArray
LinearMap: TypeAlias = Callable[[Sample], Sample]
Cond: TypeAlias = PyTree[Any]

T = TypeVar("T")

__all__ = [
    "Cond",
    "Key",
    "LinearMap",
    "Sample",
    "Scalar",
    "as_float",
    "concrete",
    "inner",
    "register_dataclass",
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
        return cls(
            **dict(zip(static, meta, strict=True)), **dict(zip(leaves, children, strict=True))
        )

    def flatten(obj):
        return values(obj, leaves), values(obj, static)

    register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def as_float(value: ArrayLike) -> Array:
    """Convert `value` to an array of the default floating dtype.

    Numbers stored this way are leaves of one type. A Python number or an array of another dtype
    would cause a new trace.
    """
    return jnp.asarray(value, dtype=jnp.result_type(float))


def concrete(value: Any) -> np.ndarray | None:
    """Return `value` as a NumPy array, or None if JAX is tracing it and its numbers are unknown."""
    return None if isinstance(value, core.Tracer) else np.asarray(value)


def inner(a: Sample, b: Sample) -> Scalar:
    """Return the inner product of two arrays of one shape."""
    return jnp.sum(a * b)
