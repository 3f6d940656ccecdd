"""A batch over many devices: each holds the whole model and its own share of the samples.

Samples know nothing of each other, so `jit(vmap(sample))` of a batch placed by `shard_batch`, with
the model placed by `replicate`, runs on every device without a word between them:

    over = device_mesh()
    run = jax.jit(jax.vmap(one, in_axes=(None, 0, 0)))  # one(model, x, key)
    run(replicate(model, over), *shard_batch((xs, keys), over))

The exception is an adaptive step-size controller: the loop of a batch ends when all of its samples
have, which devices must tell each other at every step. Wrap what runs by `over_devices` there, and
each device stops by itself.

A model too large for one device is placed by `weight_sharding` instead of `replicate`, from the
start by `dgjax.checkpoints.checkpoint.load(folder, weight_sharding(over))`. Its batch is placed by
`replicate`:
all devices work on the same samples and tell each other what they found. Were it cut as well, every
device would gather all the weights.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")

__all__ = ["AXIS", "device_mesh", "over_devices", "replicate", "shard_batch", "weight_sharding"]

AXIS = "data"
SMALL = 2**12  # elements; below, a copy on each device costs less than to gather it


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis over `devices`, all there are unless told."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def shard_batch(tree: T, mesh: Mesh) -> T:
    """`tree`, whose leaves have one leading axis in common, cut along it over the devices.

    Raises:
        ValueError: unless the devices divide the length of that axis.
    """
    for leaf in jax.tree.leaves(tree):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] % mesh.size:
            raise ValueError(
                f"{mesh.size} devices do not divide a batch of shape {np.shape(leaf)}: pad its "
                "leading axis to a multiple of them"
            )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def replicate(tree: T, mesh: Mesh) -> T:
    """`tree` with a whole copy of every leaf on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def weight_sharding(mesh: Mesh) -> Callable[[tuple[int, ...]], NamedSharding]:
    """From a weight's shape to where it lies when weights are cut over the devices of `mesh`.

    It is cut along its longest axis that the devices divide; small ones are whole everywhere.
    """

    def find(shape: tuple[int, ...]) -> NamedSharding:
        axes = [axis for axis, length in enumerate(shape) if length % mesh.size == 0]
        if not axes or np.prod(shape) < SMALL:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: shape[axis])
        spec = [AXIS if axis == longest else None for axis in range(len(shape))]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return find


def over_devices(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """`function(shared, batch)` run on each device by itself, with its own share of the batch.

    `batch` and what comes back are pytrees with one leading axis in common, `shared` is whole
    everywhere. For what would wait for the other devices otherwise: adaptive solves, and loops
    until all have converged.
    """
    each = PartitionSpec(AXIS)
    # What varies between devices is not tracked: loops inside need not say it of their carries.
    return jax.shard_map(
        function, mesh=mesh, in_specs=(PartitionSpec(), each), out_specs=each, check_vma=False
    )
