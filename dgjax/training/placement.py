"""Where the arrays of a run live: batches split over all devices, the state whole or split too.

One mesh of one axis serves one device, the devices of a host and those of many hosts. Split, each
array of the state is cut along its longest axis that the devices divide. The step puts the
weights together once, before the forward pass, and leaves each device its part of the gradient's
sum; moments and averages stay cut (Rajbhandari et al. 2020, arXiv 1910.02054, stage 3 at rest).
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from dgjax.configuration import unknown_name
from dgjax.devices.sharding import AXIS, weight_sharding
from dgjax.training.pipeline import HostBatch
from dgjax.training.step import Batch, Differentiated

__all__ = [
    "PLACEMENTS",
    "bring",
    "check_batch",
    "consecutive",
    "data_parallel",
    "on_host",
    "own_rows",
    "place",
    "shardings",
]

T = TypeVar("T")
PLACEMENTS = ("replicated", "sharded")


def shardings(tree: PyTree[Array], mesh: Mesh, parameters: str) -> PyTree[NamedSharding]:
    """The sharding of every array of `tree`.

    Raises:
        ValueError: if `parameters` is neither "replicated" nor "sharded".
    """
    if parameters not in PLACEMENTS:
        raise unknown_name("parameters", parameters, PLACEMENTS)
    if parameters == "replicated":
        return jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec()), tree)
    cut = weight_sharding(mesh)
    return jax.tree.map(lambda leaf: cut(leaf.shape), tree)


def place(tree: T, where: PyTree[NamedSharding]) -> T:
    """`tree`, the same on every host, on its devices."""

    def one(leaf, sharding):
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, where)


def data_parallel(
    function: Differentiated, mesh: Mesh, where: PyTree[NamedSharding]
) -> Differentiated:
    """`function` of whole weights and a device's own rows, as one of all devices' rows.

    Devices speak twice: weights that are cut are put together before, and gradients summed after,
    each where its weights are: of what is cut a device is left its part (a reduce-scatter).

    Args:
        function: mean loss, gradient and losses; see `Differentiated`.
        mesh: over whose devices the rows are split.
        where: sharding of every weight.
    """
    if mesh.size == 1:  # XLA for CPUs keeps what a device says to itself alone
        return function
    specs = jax.tree.map(lambda sharding: sharding.spec, where)

    def whole(leaf, spec):
        if AXIS not in spec:
            return leaf
        return jax.lax.all_gather(leaf, AXIS, axis=spec.index(AXIS), tiled=True)

    def mean(leaf, spec):
        if AXIS not in spec:
            return jax.lax.pmean(leaf, AXIS)
        cut = jax.lax.psum_scatter(leaf, AXIS, scatter_dimension=spec.index(AXIS), tiled=True)
        return cut / mesh.size

    def on_each(network, rows):
        loss, gradient, losses = function(jax.tree.map(whole, network, specs), rows)
        return jax.lax.pmean(loss, AXIS), jax.tree.map(mean, gradient, specs), losses

    rows = PartitionSpec(None, AXIS)
    # What varies between devices is not tracked: loops inside need not say it of their carries.
    return jax.shard_map(
        on_each,
        mesh=mesh,
        in_specs=(specs, rows),
        out_specs=(PartitionSpec(), specs, rows),
        check_vma=False,
    )


def check_batch(batch: int, accumulate: int, mesh: Mesh) -> None:
    """Raise a ValueError unless the devices and the parts of accumulation divide the batch."""
    if batch % (mesh.size * accumulate):
        raise ValueError(
            f"batch = {batch} must be a multiple of {mesh.size} devices x accumulate = "
            f"{accumulate}; change one of them"
        )


def own_rows(batch: int, mesh: Mesh) -> slice:
    """The rows of a batch that lie on this host's devices, so that it makes them.

    Raises:
        ValueError: if they do not follow each other.
    """
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    places = split.addressable_devices_indices_map((batch,)).values()
    return consecutive(
        (index[0].indices(batch)[:2] for index in places if index is not None), batch
    )


def consecutive(pieces: Iterable[tuple[int, int]], batch: int) -> slice:
    """The rows of `pieces`, each given by its start and its stop; errors as of `own_rows`."""
    ordered = sorted(pieces)
    for (_, stop), (start, _) in pairwise(ordered):
        if stop != start:
            raise ValueError(
                f"rows {stop} to {start - 1} of a batch of {batch} are another host's, between "
                "this one's: order the mesh's devices by host (process_index)"
            )
    return slice(ordered[0][0], ordered[-1][1])


def bring(batch: HostBatch, mesh: Mesh) -> Batch:
    """The whole batch, split over all devices, from each host's own rows, those of `own_rows`."""
    split = NamedSharding(mesh, PartitionSpec(AXIS))

    def one(a):
        size = a.shape[0] // len(split.addressable_devices) * mesh.size
        first = own_rows(size, mesh).start

        def rows(index):
            start, stop, _ = index[0].indices(size)
            return a[start - first : stop - first]

        return jax.make_array_from_callback((size, *a.shape[1:]), split, rows)

    return Batch(*jax.tree.map(one, batch))


def on_host(tree: T) -> T:
    """`tree` whole, as NumPy arrays, on every host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
