"""Place a batch of samples on many devices: each holds the whole model and a share of the samples.

Samples do not depend on each other. With the model placed by `replicate` and the batch placed by
`shard_batch`, `jit(vmap(sample))` runs on every device without communication:

    mesh = device_mesh()
    run = jax.jit(jax.vmap(one, in_axes=(None, 0, 0)))  # one(model, x, key)
    run(replicate(model, mesh), *shard_batch((xs, keys), mesh))

An adaptive step-size controller is the exception. The loop of a batch ends when all of its samples
have ended, so devices would communicate at every step. With `over_devices` each device stops by
itself.

A model that is too large for one device is placed by `weight_sharding` instead of `replicate`;
`dgjax.checkpoints.load(folder, weight_sharding(mesh))` reads it so from the start. Place its batch
by `replicate`: all devices then work on the same samples and exchange activations. With a cut batch
every device would gather all the weights.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")

__all__ = ["AXIS", "device_mesh", "over_devices", "replicate", "shard_batch", "weight_sharding"]

AXIS = "data"
SMALL = 2**12  # elements; below it, a copy on each device costs less than gathering the weight


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of one axis, named "data", over `devices`; over all devices if None."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def shard_batch(tree: T, mesh: Mesh) -> T:
    """Cut a batch along its leading axis, one part for each device.

    Args:
        tree: a pytree whose leaves have one leading axis in common.
        mesh: the devices.

    Returns:
        The same pytree, placed on the devices.

    Raises:
        ValueError: if the number of devices does not divide the length of the leading axis.
    """
    for leaf in jax.tree.leaves(tree):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] % mesh.size:
            raise ValueError(
                f"{mesh.size} devices do not divide a batch of shape {np.shape(leaf)}: pad its "
                "leading axis to a multiple of them"
            )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def replicate(tree: T, mesh: Mesh) -> T:
    """Place a whole copy of every leaf of `tree` on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def weight_sharding(mesh: Mesh) -> Callable[[tuple[int, ...]], NamedSharding]:
    """Return a function from a weight's shape to its sharding, which cuts it over the devices.

    A weight is cut along its longest axis whose length the number of devices divides. If there is
    none, and for weights below 4096 elements, every device holds a whole copy.
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
    """Run a function on each device by itself, with its own share of the batch.

    Use it for loops whose length depends on the samples, such as adaptive solves: without it a
    device waits at each iteration for the slowest sample on all devices.

    Args:
        function: a function `(shared, batch) -> result`. `batch` and `result` are pytrees whose
            leaves have one leading axis in common.
        mesh: the devices.

    Returns:
        A function of the same arguments, for `shared` placed by `replicate` and `batch` by
        `shard_batch`.
    """
    each = PartitionSpec(AXIS)
    # With check_vma loops inside would have to declare which of their state differs by device.
    return jax.shard_map(
        function, mesh=mesh, in_specs=(PartitionSpec(), each), out_specs=each, check_vma=False
    )
