"""Weights in one safetensors file: the format that `save` writes.

A file is read tensor by tensor, and of each tensor only the parts that the devices here need. It
has no checksum of its own: config.json has that of the file.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from safetensors import SafetensorError, safe_open

from dgjax.checkpoints.arrays import (
    WeightSharding,
    check_fit,
    choose_sharding,
    explain_damage,
    to_named,
)

__all__ = ["read_weights", "write_weights"]

# NumPy's names of dtypes, and those of safetensors.
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "uint32": "U32",
    "bool": "BOOL",
}


def write_weights(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to a safetensors file, one at a time.

    safetensors' own writer takes contiguous arrays only, and so would need a second copy of the
    kernels that an importer has transposed.

    Raises:
        OSError: if the file cannot be written.
    """
    # Large elements first, so that every array is aligned to its own.
    ordered = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
    entries, end = {}, 0
    for name, array in ordered.items():
        begin, end = end, end + array.nbytes
        kind = DTYPES[array.dtype.name]
        entries[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (begin, end)}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for array in ordered.values():
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def read_weights(
    file: Path, like: PyTree[Any], what: str, sharding: WeightSharding | None
) -> PyTree[Array]:
    """Read a pytree of JAX arrays from a safetensors file.

    The host holds one tensor at a time, or the part of one that a device needs.

    Args:
        file: written by `write_weights`.
        like: a pytree with the structure, shapes and dtypes of the result.
        what: what the weights belong to, for error messages.
        sharding: where the weights go; the default device if None.

    Raises:
        ValueError: if the file is missing, damaged or does not fit `like`, or `sharding` does not
            divide a weight.
    """
    expected = to_named(like)
    with explain_damage(file, SafetensorError, OSError):
        check_fit(expected, _shapes(file), what)
        leaves = [_place(file, name, leaf, sharding) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


class _Shape(NamedTuple):
    shape: tuple[int, ...]


def _shapes(file: Path) -> dict[str, _Shape]:
    with safe_open(file, "np") as opened:
        names = opened.keys()
        return {name: _Shape(tuple(opened.get_slice(name).get_shape())) for name in names}


def _place(file: Path, name: str, leaf: Any, sharding: WeightSharding | None) -> Array:
    read = partial(_read, file, name, leaf.dtype)
    if sharding is None:
        return jnp.asarray(read(...))
    chosen = choose_sharding(name, leaf.shape, sharding)
    return jax.make_array_from_callback(leaf.shape, chosen, read)


def _read(file: Path, name: str, dtype: Any, index: Any) -> np.ndarray:
    # Opened for each read: a file that stays open keeps all that was read of it in memory.
    with safe_open(file, "np") as opened, np.errstate(over="ignore"):
        stored = opened.get_slice(name)[index]
        array = np.asarray(stored, dtype)
    if array.dtype == np.float16 != stored.dtype and not np.isfinite(array).all():
        raise ValueError(f"weight {name} in {file} is not finite as float16: take bfloat16")
    return array
