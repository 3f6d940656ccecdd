"""Convert a pytree to a mapping of named arrays and back, and choose devices for its leaves."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array, PyTree

__all__ = [
    "WeightSharding",
    "abstract_as",
    "as_dtype",
    "check_fit",
    "choose_sharding",
    "explain_damage",
    "first_line",
    "from_named",
    "to_named",
]

# One sharding for all weights, or a function from a weight's shape to its sharding.
WeightSharding = Sharding | Callable[[tuple[int, ...]], Sharding]


def to_named(tree: PyTree[Array]) -> dict[str, Array]:
    """Return the leaves of any pytree by their path in it, such as 'down.0.1.conv_in.kernel'."""
    # Paths end at flax's variables: the names inside a variable differ between releases of flax.
    paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def from_named(like: PyTree[Any], named: Mapping[str, Any], what: str) -> PyTree[Array]:
    """Build a pytree of NumPy arrays from named arrays; the inverse of `to_named`.

    Args:
        like: a pytree with the structure, shapes and dtypes of the result, such as the abstract
            arrays of `jax.eval_shape`.
        named: the arrays, by the names that `to_named` gives to the leaves of `like`.
        what: what the arrays belong to, for the error message.

    Returns:
        The pytree, each leaf converted to the dtype in `like`.

    Raises:
        ValueError: if names or shapes differ from those of `like`.
    """
    expected = to_named(like)
    check_fit(expected, named, what)
    leaves = [np.asarray(named[name], leaf.dtype) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_fit(expected: Mapping[str, Any], named: Mapping[str, Any], what: str) -> None:
    """Compare the names and shapes of two mappings of arrays.

    Args:
        expected: arrays, or anything with a `shape`, by name.
        named: the same of what was found.
        what: what `named` belongs to, for the error message.

    Raises:
        ValueError: if the names or a shape differ.
    """
    if missing := sorted(expected.keys() ^ named.keys()):
        raise ValueError(
            f"{what} does not fit its config: {missing[0]!r} is on one side only "
            f"({len(missing)} such arrays)"
        )
    for name, leaf in expected.items():
        if tuple(named[name].shape) != tuple(leaf.shape):
            raise ValueError(
                f"{what} does not fit its config: {name!r} has shape {named[name].shape} "
                f"where {leaf.shape} is expected"
            )


def as_dtype(tree: PyTree[Array], dtype: Any) -> dict[str, np.ndarray]:
    """Return the named leaves of a pytree as NumPy arrays of `dtype`.

    Args:
        tree: the weights.
        dtype: of the result; with None each array keeps its own, and is not copied.

    Raises:
        ValueError: if a value is not finite in that dtype.
    """
    with np.errstate(over="ignore"):
        weights = {
            k: np.asarray(v).astype(dtype or v.dtype, copy=False) for k, v in to_named(tree).items()
        }
    for name, value in weights.items():
        if not np.isfinite(value.astype(np.float32)).all():
            raise ValueError(f"weight {name} is not finite as {value.dtype.name}; not saved")
    return weights


def abstract_as(like: PyTree[Any], dtype: Any) -> PyTree[jax.ShapeDtypeStruct]:
    """Return abstract arrays whose floating-point numbers are of `dtype`; others keep theirs.

    Args:
        like: arrays, or anything with a shape and a dtype.
        dtype: of the result.
    """

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if floating else leaf.dtype)

    return jax.tree.map(one, like)


def choose_sharding(name: str, shape: tuple[int, ...], sharding: WeightSharding) -> Sharding:
    """Return the sharding of the weight `name`.

    Raises:
        ValueError: if the sharding does not divide this shape.
    """
    chosen = sharding(shape) if callable(sharding) else sharding
    try:
        chosen.shard_shape(shape)
    except ValueError as error:
        raise ValueError(
            f"weight {name} of shape {shape} cannot be cut as {chosen}: pass a function from shape "
            "to sharding, such as dgjax.devices.weight_sharding(mesh)"
        ) from error
    return chosen


@contextmanager
def explain_damage(place: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of these kinds into one ValueError that names the damaged place."""
    try:
        yield
    except kinds as error:
        raise ValueError(
            f"the arrays in {place} are missing or damaged ({first_line(error)}); "
            "copy the checkpoint again, or go back to an earlier one"
        ) from error


def first_line(error: Exception) -> str:
    """Return the kind of an exception and the first line of its message, at most 200 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
