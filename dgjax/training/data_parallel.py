"""Data-parallel training: the batch is split over all devices, the state is replicated or sharded.

One device mesh with one axis serves a single device, the devices of one host, and those of many
hosts. In a sharded state, each large array is split along its longest axis that the number of
devices divides. A step gathers the weights once, before the forward pass, and leaves each device
its part of the summed gradient. Optimiser state and moving averages always stay split (ZeRO, arXiv
1910.02054, stage 3 between steps).
"""

import math
import os
from collections.abc import Iterable
from itertools import pairwise
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from dgjax.checkpoints.configuration import unknown_name
from dgjax.devices.sharding import AXIS, weight_sharding
from dgjax.training.objective import Batch
from dgjax.training.pipeline import HostBatch
from dgjax.training.step import GradientFunction

__all__ = [
    "PARAMETER_LAYOUTS",
    "check_batch",
    "check_memory",
    "contiguous",
    "data_parallel",
    "global_batch",
    "host_rows",
    "state_shardings",
    "to_devices",
    "to_host",
]

T = TypeVar("T")
PARAMETER_LAYOUTS = ("replicated", "sharded")


def state_shardings(tree: PyTree[Array], mesh: Mesh, parameters: str) -> PyTree[NamedSharding]:
    """Return the sharding of every array of a training state.

    Args:
        tree: the state, or its shapes.
        mesh: of the devices.
        parameters: "replicated" for a copy on every device, "sharded" to split large arrays.

    Raises:
        ValueError: if `parameters` is unknown.
    """
    if parameters not in PARAMETER_LAYOUTS:
        raise unknown_name("parameters", parameters, PARAMETER_LAYOUTS)
    if parameters == "replicated":
        return jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec()), tree)
    by_shape = weight_sharding(mesh)
    return jax.tree.map(lambda leaf: by_shape(leaf.shape), tree)


def check_memory(tree: PyTree[Array], where: PyTree[NamedSharding]) -> None:
    """Check that a training state fits into the memory of this host, where its CPUs hold it.

    Other devices say themselves that their memory is full, but on a CPU the system may end the
    process without a word.

    Args:
        tree: the state, or its shapes.
        where: sharding of every array.

    Raises:
        ValueError: if the state is larger.
    """
    if jax.default_backend() != "cpu" or not hasattr(os, "sysconf"):
        return

    def size(leaf, sharding):
        part = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        return part * len(sharding.addressable_devices)

    needed = sum(jax.tree.leaves(jax.tree.map(size, tree, where)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"weights, optimiser state and averages take {needed / 1e9:,.0f} GB and this machine "
            f"has {memory / 1e9:,.0f} GB of memory; take a smaller network (model.network)"
        )


def to_devices(tree: T, where: PyTree[NamedSharding]) -> T:
    """Put a tree of arrays on the devices.

    Args:
        tree: arrays, the same on every host.
        where: sharding of every array.
    """

    def one(leaf, sharding):
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, where)


def to_host(tree: T) -> T:
    """Return the whole tree as NumPy arrays, on every host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def data_parallel(
    function: GradientFunction, mesh: Mesh, where: PyTree[NamedSharding]
) -> GradientFunction:
    """Turn the gradient function of one device into that of all devices of a mesh.

    Each device evaluates `function` for whole weights and its own rows. Devices communicate twice:
    split weights are gathered before, and gradients are averaged after. The gradient of a split
    weight is left split the same way (reduce-scatter).

    Args:
        function: mean loss, gradient and losses; see `GradientFunction`.
        mesh: of the devices over which rows are split.
        where: sharding of every weight.
    """
    if mesh.size == 1:  # XLA for CPUs does not remove communication of a device with itself
        return function
    specs = jax.tree.map(lambda sharding: sharding.spec, where)

    def gather(leaf, spec):
        if AXIS not in spec:
            return leaf
        return jax.lax.all_gather(leaf, AXIS, axis=spec.index(AXIS), tiled=True)

    def average(leaf, spec):
        if AXIS not in spec:
            return jax.lax.pmean(leaf, AXIS)
        part = jax.lax.psum_scatter(leaf, AXIS, scatter_dimension=spec.index(AXIS), tiled=True)
        return part / mesh.size

    def on_each_device(network, rows):
        loss, gradient, losses = function(jax.tree.map(gather, network, specs), rows)
        return jax.lax.pmean(loss, AXIS), jax.tree.map(average, gradient, specs), losses

    rows = PartitionSpec(None, AXIS)
    # Without check_vma the carries of loops inside need no mark for what varies between devices.
    return jax.shard_map(
        on_each_device,
        mesh=mesh,
        in_specs=(specs, rows),
        out_specs=(PartitionSpec(), specs, rows),
        check_vma=False,
    )


def check_batch(batch: int, accumulate: int, mesh: Mesh) -> None:
    """Check that a batch divides evenly into devices and microbatches.

    Args:
        batch: number of samples in a batch.
        accumulate: number of microbatches.
        mesh: of the devices.

    Raises:
        ValueError: if it does not.
    """
    if batch % (mesh.size * accumulate):
        raise ValueError(
            f"batch = {batch} must be a multiple of {mesh.size} devices x accumulate = "
            f"{accumulate}; change one of them"
        )


def host_rows(batch: int, mesh: Mesh) -> slice:
    """Return the rows of a batch that this host's devices hold, and so this host makes.

    Args:
        batch: number of samples in a batch.
        mesh: of the devices over which rows are split.

    Raises:
        ValueError: if the rows are not contiguous.
    """
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    indices = split.addressable_devices_indices_map((batch,)).values()
    return contiguous(
        (index[0].indices(batch)[:2] for index in indices if index is not None), batch
    )


def contiguous(pieces: Iterable[tuple[int, int]], batch: int) -> slice:
    """Join pieces of rows, each (start, stop), to one slice.

    Args:
        pieces: the pieces, in any order.
        batch: number of samples in a batch, for the error message.

    Raises:
        ValueError: if there are rows between the pieces that belong to none.
    """
    ordered = sorted(pieces)
    for (_, stop), (start, _) in pairwise(ordered):
        if stop != start:
            raise ValueError(
                f"rows {stop} to {start - 1} of a batch of {batch} are another host's, between "
                "this one's: order the mesh's devices by host (process_index)"
            )
    return slice(ordered[0][0], ordered[-1][1])


def global_batch(batch: HostBatch, mesh: Mesh) -> Batch:
    """Assemble the batch of all hosts, split over all devices, from each host's own rows.

    Args:
        batch: this host's rows, those of `host_rows`.
        mesh: of the devices over which rows are split.
    """
    split = NamedSharding(mesh, PartitionSpec(AXIS))

    def one(a):
        size = a.shape[0] // len(split.addressable_devices) * mesh.size
        first = host_rows(size, mesh).start

        def rows(index):
            start, stop, _ = index[0].indices(size)
            return a[start - first : stop - first]

        return jax.make_array_from_callback((size, *a.shape[1:]), split, rows)

    return Batch(*jax.tree.map(one, batch))
