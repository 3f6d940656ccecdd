"""The arrays of a pytree by their names: in memory, and in a folder by orbax."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array, PyTree

__all__ = [
    "Placement",
    "as_dtype",
    "first_line",
    "from_named",
    "read_arrays",
    "restore",
    "to_named",
    "write_arrays",
]

PART = 2**24  # bytes of weights read at a time, and of a file of weights
# Of all arrays, or of each by its shape.
Placement = Sharding | Callable[[tuple[int, ...]], Sharding]


def to_named(tree: PyTree[Array]) -> dict[str, Array]:
    """The leaves of any pytree by their place in it, such as 'down.0.1.conv_in.kernel'."""
    # Down to flax's variables only: what they call their inside has changed between releases.
    places = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in places]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def from_named(like: PyTree[Any], named: Mapping[str, Any], what: str) -> PyTree[Array]:
    """A pytree of NumPy arrays like `like` in structure, shapes and dtypes, from `named`.

    Raises:
        ValueError: if the names or the shapes differ; `what` says of what.
    """
    expected = to_named(like)
    _check_fit(expected, named, what)
    leaves = [np.asarray(named[name], leaf.dtype) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _check_fit(expected: Mapping[str, Any], named: Mapping[str, Any], what: str) -> None:
    if missing := sorted(expected.keys() ^ named.keys()):
        raise ValueError(
            f"{what} does not fit its config: {missing[0]!r} is on one side only "
            f"({len(missing)} such arrays)"
        )
    for name, leaf in expected.items():
        if named[name].shape != leaf.shape:
            raise ValueError(
                f"{what} does not fit its config: {name!r} has shape {named[name].shape} "
                f"where {leaf.shape} is expected"
            )


class _Unchanged(np.ndarray):
    """An array that nobody changes while it is written, which orbax would copy first."""

    def __deepcopy__(self, memo: dict[int, Any] | None) -> "_Unchanged":
        return self


def as_dtype(tree: PyTree[Array], dtype: Any) -> dict[str, np.ndarray]:
    """Named arrays as `dtype`, or as they are; a ValueError if one is not finite then."""
    with np.errstate(over="ignore"):
        weights = {
            k: np.asarray(v).astype(dtype or v.dtype, copy=False) for k, v in to_named(tree).items()
        }
    for name, value in weights.items():
        if not np.isfinite(value.astype(np.float32)).all():
            raise ValueError(f"weight {name} is not finite as {value.dtype.name}; not saved")
    return {name: value.view(_Unchanged) for name, value in weights.items()}


def _own_writer() -> ocp.Checkpointer:
    """One that does not wait for other hosts, which need not save what they hold too."""
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"host{here}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to `folder`, which must not be there; an OSError if it cannot be."""
    with _own_writer() as writer:
        args = ocp.args.PyTreeSave(arrays, ocdbt_target_data_file_size=PART)
        writer.save(folder, args=args)
    # It names the temporary folder, for file systems that cannot rename.
    (folder / "commit_success.txt").unlink(missing_ok=True)


def restore(
    folder: Path, like: PyTree[Any], what: str, sharding: Placement | None
) -> PyTree[Array]:
    """A pytree like `like` of JAX arrays, from those in `folder`; errors as of `load`."""
    expected = to_named(like)
    _check_fit(expected, _stored_shapes(folder), what)
    sizes = np.cumsum([leaf.size * leaf.dtype.itemsize for leaf in expected.values()])
    leaves = []
    for _, part in groupby(zip(expected.items(), sizes // PART, strict=True), lambda item: item[1]):
        wanted = dict(item for item, _ in part)
        how = {name: _how(name, leaf, sharding) for name, leaf in wanted.items()}
        found = _read(folder, how)
        leaves += [jnp.asarray(found.pop(name), leaf.dtype) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _how(name: str, leaf: Any, sharding: Placement | None) -> ocp.RestoreArgs:
    """How orbax restores an array; neither way needs a mesh like the one it was written on."""
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    where = sharding(leaf.shape) if callable(sharding) else sharding
    try:
        where.shard_shape(leaf.shape)
    except ValueError as error:
        raise ValueError(
            f"weight {name} of shape {leaf.shape} cannot be cut as {where}: take a sharding by "
            "shape, such as dgjax.devices.sharding.weight_sharding(mesh)"
        ) from error
    return ocp.ArrayRestoreArgs(sharding=where)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The named arrays that orbax wrote to `folder`, whatever devices they were on.

    Raises:
        ValueError: if the folder is missing or damaged.
    """
    how = {name: _how(name, leaf, None) for name, leaf in _stored_shapes(folder).items()}
    return _read(folder, how)


def _stored_shapes(folder: Path) -> dict[str, Any]:
    """What orbax says of the arrays in `folder`: their shapes by name."""
    with _naming_damage(folder):
        return dict(ocp.PyTreeCheckpointHandler().metadata(folder).tree)


def _read(folder: Path, wanted: dict[str, ocp.RestoreArgs]) -> dict[str, Any]:
    """The arrays of these names, each restored in its way."""
    args = ocp.args.PyTreeRestore(
        item=dict.fromkeys(wanted, 0), restore_args=wanted, partial_restore=True
    )
    with _naming_damage(folder):
        return ocp.PyTreeCheckpointHandler().restore(folder, args=args)


@contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise bare Exceptions on damaged files
        raise ValueError(
            f"the arrays in {folder} are missing or damaged ({first_line(error)}); "
            "copy the checkpoint again, or go back to an earlier one"
        ) from error


def first_line(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
