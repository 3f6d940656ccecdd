"""Names for the arrays that travel through the library.

Library functions act on ONE sample `x` of any shape; batching is `jax.vmap`.
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
    """Make a dataclass a pytree; fields with the metadata `static` belong to its structure.

    For `jax.tree_util.register_dataclass`, whose structures compare equal between classes that
    have as many leaves and equal static fields (jaxlib 0.10.2): once in a while `jit` then runs
    what it traced for an object of the other class.
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
    """`value` as an array of the default floating dtype, so that numbers are leaves of one type.

    Python numbers and arrays of other dtypes would each trace a function anew.
    """
    return jnp.asarray(value, dtype=jnp.result_type(float))


def concrete(value: Any) -> np.ndarray | None:
    """`value` as a NumPy array when its numbers are known now, or None while it is traced."""
    return None if isinstance(value, core.Tracer) else np.asarray(value)


def inner(a: Sample, b: Sample) -> Scalar:
    """Inner product of two arrays of one shape."""
    return jnp.sum(a * b)
