"""Where a command's model lies: whole on every device, or cut over them if it is large."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import jax
from jax.sharding import Mesh

from dgjax.arrays import Placement
from dgjax.checkpoint import weight_bytes
from dgjax.sharding import device_mesh, replicate, weight_sharding

__all__ = ["everywhere", "placement"]

T = TypeVar("T")

SHARE = 0.5  # of a device's memory for whole weights; samples and their products need the rest


def placement(folder: str | Path) -> Placement | None:
    """The sharding for `dgjax.checkpoint.load`: None unless one device has too little memory.

    Then each local device has a part of the weights, and tells the others of it where it is used.
    """
    mesh = device_mesh(jax.local_devices())
    room = memory(list(mesh.devices.flat))
    if mesh.size == 1 or room is None or weight_bytes(folder) <= SHARE * room:
        return None
    return weight_sharding(mesh)


def memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes of the smallest of `devices`; None where they do not say, as a CPU."""
    found = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return min((limit for limit in found if limit is not None), default=None)


def everywhere(tree: T, mesh: Mesh) -> T:
    """`tree` with a copy of every leaf on every device, but for those that are cut over `mesh`."""

    def place(leaf):
        cut = isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(mesh.devices.flat)
        return leaf if cut else replicate(leaf, mesh)

    return jax.tree.map(place, tree)
