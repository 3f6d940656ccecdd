"""Where the arrays of a run live: batches split over all devices, the state whole or split too.

One mesh of one axis serves one device, the devices of a host and those of many hosts. Split, each
array of the state is cut along its longest axis that the devices divide; the step puts the
weights together once, before the forward pass, and moments and averages stay cut
(Rajbhandari et al. 2020, arXiv 1910.02054, stage 3 at rest).
"""

from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from dgjax.sharding import AXIS
from dgjax.spec import unknown_name
from dgjax.training.pipeline import HostBatch
from dgjax.training.step import Batch

__all__ = ["PLACEMENTS", "bring", "check_batch", "on_host", "own_rows", "place", "shardings"]

T = TypeVar("T")
PLACEMENTS = ("replicated", "sharded")
SMALL = 2**12  # elements; below, a copy on each device costs less than to gather it


def shardings(tree: PyTree[Array], mesh: Mesh, parameters: str) -> PyTree[NamedSharding]:
    """The sharding of every array of `tree`.

    Raises:
        ValueError: if `parameters` is neither "replicated" nor "sharded".
    """
    if parameters not in PLACEMENTS:
        raise unknown_name("parameters", parameters, PLACEMENTS)

    def one(leaf):
        spec = PartitionSpec() if parameters == "replicated" else _cut(leaf.shape, mesh.size)
        return NamedSharding(mesh, spec)

    return jax.tree.map(one, tree)


def _cut(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    axes = [axis for axis, length in enumerate(shape) if length % devices == 0]
    if not axes or np.prod(shape) < SMALL:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[AXIS if axis == longest else None for axis in range(len(shape))])


def place(tree: T, where: PyTree[NamedSharding]) -> T:
    """`tree`, the same on every host, on its devices."""

    def one(leaf, sharding):
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, where)


def check_batch(batch: int, accumulate: int, mesh: Mesh) -> None:
    """Raise a ValueError unless the devices and the parts of accumulation divide the batch."""
    if batch % (mesh.size * accumulate):
        raise ValueError(
            f"batch = {batch} must be a multiple of {mesh.size} devices x accumulate = "
            f"{accumulate}; change one of them"
        )


def own_rows(batch: int) -> slice:
    """The rows of a batch that this host makes."""
    each = batch // jax.process_count()
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


def bring(batch: HostBatch, mesh: Mesh) -> Batch:
    """The whole batch, split over all devices, from each host's own rows."""
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    arrays = jax.tree.map(lambda a: jax.make_array_from_process_local_data(split, a), batch)
    return Batch(*arrays)


def on_host(tree: T) -> T:
    """`tree` whole, as NumPy arrays, on every host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
