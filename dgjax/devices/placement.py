"""Where a command's model lies: whole on every device, or cut over them if it is large."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding

from dgjax.devices.sharding import device_mesh, replicate, shard_batch, weight_sharding

__all__ = ["Put", "place", "placement"]

T = TypeVar("T")
Put = Callable[[T, Mesh], T]

SHARE = 0.5  # of a device's memory for whole weights; samples and their products need the rest


def placement(
    weight_bytes: Callable[[], int], devices: Sequence[jax.Device]
) -> Callable[[tuple[int, ...]], NamedSharding] | None:
    """Decide how to lay a model's weights over `devices`.

    Args:
        weight_bytes: finds the size of the weights; called only if there are several devices
            that say how much memory they have.
        devices: to be used.

    Returns:
        None if the weights fit one device, else where each weight lies, by its shape.
    """
    mesh = device_mesh(devices)
    room = memory(devices)
    if mesh.size == 1 or room is None or weight_bytes() <= SHARE * room:
        return None
    return weight_sharding(mesh)


def memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that JAX may take of the smallest of `devices`; None if they do not say, as a CPU."""
    found = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return min((limit for limit in found if limit is not None), default=None)


def place(shared: T, mesh: Mesh) -> tuple[T, Put]:
    """`shared` over the devices of `mesh`, and how batches that it is used with are put there.

    With a copy of `shared` on every device each takes its own samples. What is cut over them
    already stays so, and all work on the same samples: were these cut as well, every device would
    have to gather all weights.
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
