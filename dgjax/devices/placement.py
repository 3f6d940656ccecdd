"""Choose how a model lies on the devices: whole on each, or cut over all if it is too large."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding

from dgjax.devices.sharding import device_mesh, replicate, shard_batch, weight_sharding

__all__ = ["PlaceBatch", "choose_weight_sharding", "place_shared", "smallest_memory"]

T = TypeVar("T")
PlaceBatch = Callable[[T, Mesh], T]

SHARE = 0.5  # of a device's memory for whole weights; samples and their products need the rest


def choose_weight_sharding(
    weight_bytes: Callable[[], int], devices: Sequence[jax.Device]
) -> Callable[[tuple[int, ...]], NamedSharding] | None:
    """Cut a model's weights over the devices only if they take over half of a device's memory.

    Args:
        weight_bytes: returns the size of the weights in bytes; called only if there are several
            devices and they state their memory.
        devices: the devices to use.

    Returns:
        None if the weights fit one device, else a function from a weight's shape to its sharding.
    """
    mesh = device_mesh(devices)
    memory = smallest_memory(devices)
    if mesh.size == 1 or memory is None or weight_bytes() <= SHARE * memory:
        return None
    return weight_sharding(mesh)


def smallest_memory(devices: Sequence[jax.Device]) -> int | None:
    """Return the bytes that JAX may use of the smallest device, or None if no device says.

    CPUs do not say.
    """
    found = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return min((limit for limit in found if limit is not None), default=None)


def place_shared(shared: T, mesh: Mesh) -> tuple[T, PlaceBatch]:
    """Place the arguments that all batches share, and choose how batches are placed.

    If every leaf of `shared` is whole on each device, a batch is cut and each device takes its own
    samples (`shard_batch`). If a leaf is cut over the devices, it stays so, and all devices work
    on the same samples (`replicate`): with a cut batch every device would have to gather all
    weights.

    Args:
        shared: a pytree, such as a model.
        mesh: the devices.

    Returns:
        `shared` on the devices, and the function `(batch, mesh) -> batch` that places a batch.
    """
    devices = set(mesh.devices.flat)

    def is_cut(leaf):
        if not isinstance(leaf, jax.Array) or leaf.sharding.device_set != devices:
            return False
        return not leaf.sharding.is_fully_replicated

    if not any(map(is_cut, jax.tree.leaves(shared))):
        return replicate(shared, mesh), shard_batch
    placed = jax.tree.map(lambda leaf: leaf if is_cut(leaf) else replicate(leaf, mesh), shared)
    return placed, replicate
