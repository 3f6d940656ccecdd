"""A Flax network's leaves from arrays under PyTorch's names.

The networks for import call their parts as their sources do, so one rule serves them all: a
`kernel` is the `weight` of a convolution (OIHW there, HWIO here) or of a linear layer (transposed),
a `scale` that of a norm, an `embedding` that of a table. What a source calls otherwise is a short
table of renames.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from dgjax.checkpoints.arrays import to_named

__all__ = ["fill"]

WEIGHTS = ("kernel", "scale", "embedding")  # all of them `weight` in PyTorch
# From the axes here to those there, by the number of axes of a kernel.
AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


def fill(
    like: PyTree[Any],
    weights: Mapping[str, Any],
    what: str,
    *,
    renames: Sequence[tuple[str, str]] = (),
    constants: Mapping[str, ArrayLike] | None = None,
) -> PyTree[Array]:
    """A network like `like`, of NumPy arrays in the source's own precision.

    Arrays are read one at a time, after all names and shapes have been compared.

    Args:
        like: the network, of which only structure and shapes are read (`nnx.eval_shape` of it).
        weights: arrays (or `dgjax.importing.weights.Stored`) by their PyTorch names.
        what: what the weights are, for messages.
        renames: (pattern, replacement) for `re.sub` on each name of the source, in this order.
        constants: what the source stores and this network computes, by a pattern for the whole
            name (after renaming): these arrays are compared, not copied.

    Raises:
        ValueError: naming the first array that is left over, missing, of another shape or
            precision, or a constant of another value.
    """
    found = _rename(weights, what, renames)
    for name in [name for name in found if _constant(name, constants or {}) is not None]:
        _compare(name, found.pop(name), _constant(name, constants or {}), what)
    expected = to_named(like)
    places = {name: _place(name) for name in expected}
    _same_names(set(places.values()), set(found), what)
    for name, leaf in expected.items():
        shape = tuple(leaf.shape[axis] for axis in _axes(name, leaf.shape))
        there = tuple(found[places[name]].shape)
        if there != shape:
            raise ValueError(
                f"{what} does not fit its config: {places[name]!r} has shape {there} where {shape} "
                "is expected"
            )
    dtype = _precision({place: np.dtype(found[place].dtype) for place in places.values()}, what)
    leaves = []
    for name, leaf in expected.items():
        array = np.asarray(found[places[name]]).astype(dtype, copy=False)
        leaves.append(array.transpose(np.argsort(_axes(name, leaf.shape))))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _rename(
    weights: Mapping[str, Any], what: str, renames: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, array in weights.items():
        new = name
        for pattern, replacement in renames:
            new = re.sub(pattern, replacement, new)
        if new in found:
            raise ValueError(f"{what} has two arrays for {new!r}, one of them called {name!r}")
        found[new] = array
    return found


def _place(name: str) -> str:
    """PyTorch's name of a leaf."""
    *owner, last = name.split(".")
    return ".".join([*owner, "weight" if last in WEIGHTS else last])


def _axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of a leaf in the order in which PyTorch has them."""
    kernel = name.rsplit(".", 1)[-1] == "kernel"
    return AXES[len(shape)] if kernel else tuple(range(len(shape)))


def _same_names(here: set[str], there: set[str], what: str) -> None:
    for names, trouble in (
        (sorted(there - here), "has no place in this network"),
        (sorted(here - there), "is missing"),
    ):
        if names:
            raise ValueError(
                f"{what} does not fit its config: {names[0]!r} {trouble} ({len(names)} such arrays)"
            )


def _precision(dtypes: Mapping[str, np.dtype], what: str) -> np.dtype:
    """The one that all arrays have; double is stored as single, in which networks run."""
    first, dtype = next(iter(dtypes.items()))
    for name, other in dtypes.items():
        if other != dtype:
            raise ValueError(
                f"{what} mixes precisions: {first!r} is {dtype.name} and {name!r} {other.name}; "
                "convert it to one"
            )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{what} holds {dtype.name} where numbers with a point are expected")
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _constant(name: str, constants: Mapping[str, ArrayLike]) -> Any:
    for pattern, value in constants.items():
        if re.fullmatch(pattern, name):
            return np.asarray(value)
    return None


def _compare(name: str, stored: Any, value: np.ndarray, what: str) -> None:
    found = np.asarray(stored).astype(value.dtype)
    precision = max(float(jnp.finfo(d).eps) for d in (np.float32, np.dtype(stored.dtype)))
    size = float(np.max(np.abs(value)))
    if found.shape != value.shape or not np.allclose(
        found, value, rtol=0, atol=4 * precision * size
    ):
        raise ValueError(
            f"{what} does not fit its config: the constant {name!r} is not what this network "
            "computes"
        )
