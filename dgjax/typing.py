"""Names for the arrays that travel through the library.

Library functions act on ONE sample `x` of any shape; batching is `jax.vmap`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

Scalar: TypeAlias = Float[Array, ""]
Sample: TypeAlias = Float[Array, "..."]
Key: TypeAlias = PRNGKeyArray
LinearMap: TypeAlias = Callable[[Sample], Sample]
Cond: TypeAlias = PyTree[Any]

__all__ = ["Cond", "Key", "LinearMap", "Sample", "Scalar", "as_float", "inner", "known"]


def as_float(value: ArrayLike) -> Array:
    """`value` as an array of the default floating dtype, so that numbers are leaves of one type.

    Python numbers and arrays of other dtypes would each trace a function anew.
    """
    return jnp.asarray(value, dtype=jnp.result_type(float))


def known(value: Any) -> np.ndarray | None:
    """`value` as a NumPy array when its numbers are known now, or None while it is traced."""
    return None if isinstance(value, core.Tracer) else np.asarray(value)


def inner(a: Sample, b: Sample) -> Scalar:
    """Inner product of two arrays of one shape."""
    return jnp.sum(a * b)
