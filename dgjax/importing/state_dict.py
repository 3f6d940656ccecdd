"""Load PyTorch weights, by name, into a Flax network.

The networks for import name their attributes as the PyTorch modules do. So one rule gives the
PyTorch name and layout of each array: a `kernel` is the `weight` of a convolution (OIHW in PyTorch,
HWIO in Flax) or of a linear layer (transposed), a `scale` is the `weight` of a normalization, and
an `embedding` that of a table. Where a source has other names, a list of renames translates them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from dgjax.checkpoints.arrays import to_named

__all__ = ["load_state_dict"]

WEIGHTS = ("kernel", "scale", "embedding")  # all of them `weight` in PyTorch
# Flax's axes of a kernel in PyTorch's order, by the number of axes.
AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


def load_state_dict(
    like: PyTree[Any],
    weights: Mapping[str, Any],
    what: str,
    *,
    renames: Sequence[tuple[str, str]] = (),
    constants: Mapping[str, ArrayLike] | None = None,
) -> PyTree[Array]:
    """Make a Flax network of PyTorch weights.

    Every array must have its place in the network, and the other way round. Arrays are read one
    at a time, after all names and shapes have been compared.

    Args:
        like: the network with shapes in place of arrays (`nnx.eval_shape` of its constructor).
        weights: arrays, or `StoredArray`s of a file, by their PyTorch names.
        what: name of the weights in error messages.
        renames: pairs (pattern, replacement) for `re.sub`, applied in this order to each name.
        constants: values that the source stores and this network computes, by a pattern that
            matches their whole names (after the renames). Their arrays are compared, not loaded.

    Returns:
        A network like `like` with NumPy arrays in the precision of `weights`, each in its own, and
        float64 as float32.

    Raises:
        ValueError: if an array is missing, left over, of another shape or not of floating-point
            numbers, or a constant has another value. The message names the first.
    """
    found = _rename(weights, what, renames)
    for name in [name for name in found if _constant(name, constants or {}) is not None]:
        _compare(name, found.pop(name), _constant(name, constants or {}), what)
    expected = to_named(like)
    torch_names = {name: _torch_name(name) for name in expected}
    _check_same_names(set(torch_names.values()), set(found), what)
    for name, leaf in expected.items():
        shape = tuple(leaf.shape[axis] for axis in _axes(name, leaf.shape))
        stored = tuple(found[torch_names[name]].shape)
        if stored != shape:
            raise ValueError(
                f"{what} does not fit its config: {torch_names[name]!r} has shape {stored} where "
                f"{shape} is expected"
            )
    dtypes = {name: _kept_dtype(name, array, what) for name, array in found.items()}
    leaves = []
    for name, leaf in expected.items():
        torch_name = torch_names[name]
        array = np.asarray(found[torch_name]).astype(dtypes[torch_name], copy=False)
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


def _torch_name(name: str) -> str:
    *owner, last = name.split(".")
    return ".".join([*owner, "weight" if last in WEIGHTS else last])


def _axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of a Flax array in the order in which PyTorch has them."""
    kernel = name.rsplit(".", 1)[-1] == "kernel"
    return AXES[len(shape)] if kernel else tuple(range(len(shape)))


def _check_same_names(expected: set[str], stored: set[str], what: str) -> None:
    for names, problem in (
        (sorted(stored - expected), "has no place in this network"),
        (sorted(expected - stored), "is missing"),
    ):
        if names:
            raise ValueError(
                f"{what} does not fit its config: {names[0]!r} {problem} ({len(names)} such arrays)"
            )


def _kept_dtype(name: str, array: Any, what: str) -> np.dtype:
    """Return the dtype of an array, and float32 for float64."""
    dtype = np.dtype(array.dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{what} holds {name!r} as {dtype.name}, where floating-point numbers are expected"
        )
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _constant(name: str, constants: Mapping[str, ArrayLike]) -> Any:
    for pattern, value in constants.items():
        if re.fullmatch(pattern, name):
            return np.asarray(value)
    return None


def _compare(name: str, stored: Any, value: np.ndarray, what: str) -> None:
    found = np.asarray(stored).astype(value.dtype)
    dtype = np.dtype(stored.dtype)
    exact = np.dtype(np.float32)  # integers are compared as closely as these
    rounded = dtype if jnp.issubdtype(dtype, jnp.floating) else exact
    precision = max(float(jnp.finfo(d).eps) for d in (exact, rounded))
    size = float(np.max(np.abs(value)))
    if found.shape != value.shape or not np.allclose(
        found, value, rtol=0, atol=4 * precision * size
    ):
        raise ValueError(
            f"{what} does not fit its config: the constant {name!r} is not what this network "
            "computes"
        )
