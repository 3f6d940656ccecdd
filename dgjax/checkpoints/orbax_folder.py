"""Arrays in a folder that orbax wrote: training states, and models of "dgjax-checkpoint-1"."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from dgjax.checkpoints.arrays import (
    WeightSharding,
    check_fit,
    choose_sharding,
    explain_damage,
    to_named,
)

__all__ = ["read_arrays", "restore"]


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Read the named arrays in a folder, whatever devices they were on.

    Raises:
        ValueError: if the folder is missing or damaged.
    """
    # orbax and tensorstore raise bare Exceptions on damaged files.
    with explain_damage(folder, Exception):
        stored = _metadata(folder)
        return _restore(folder, {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored})


def restore(
    folder: Path, like: PyTree[Any], what: str, sharding: WeightSharding | None
) -> PyTree[Array]:
    """Read a pytree of JAX arrays from a folder; each device is sent its part only.

    Args:
        folder: of named arrays.
        like: a pytree with the structure, shapes and dtypes of the result.
        what: what the arrays belong to, for error messages.
        sharding: where the arrays go; the default device if None.

    Raises:
        ValueError: if the folder is missing, damaged or does not fit `like`, or `sharding` does
            not divide an array.
    """
    expected = to_named(like)
    with explain_damage(folder, Exception):
        stored = _metadata(folder)
    check_fit(expected, stored, what)
    how = {name: _restore_args(name, leaf, sharding) for name, leaf in expected.items()}
    with explain_damage(folder, Exception):
        found = _restore(folder, how)
    leaves = [jnp.asarray(found.pop(name), leaf.dtype) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _restore_args(name: str, leaf: Any, sharding: WeightSharding | None) -> ocp.RestoreArgs:
    # Both kinds restore onto other devices than those that the arrays were written from.
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    chosen = choose_sharding(name, leaf.shape, sharding)
    return ocp.ArrayRestoreArgs(sharding=chosen, dtype=leaf.dtype)


def _metadata(folder: Path) -> dict[str, Any]:
    return dict(ocp.PyTreeCheckpointHandler().metadata(folder).tree)


def _restore(folder: Path, how: dict[str, ocp.RestoreArgs]) -> dict[str, Any]:
    args = ocp.args.PyTreeRestore(restore_args=how)
    return ocp.PyTreeCheckpointHandler().restore(folder, args=args)
