"""Any number of samples through one compiled call of fixed size, spread over all devices here."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dgjax.devices.placement import place
from dgjax.devices.progress import Show, progress
from dgjax.devices.sharding import device_mesh

__all__ = ["Walk", "batches", "walker"]

Walk = Callable[[Any, Show], Any]


def batches(what: str, run: Callable[..., Any], items: Any, size: int, *shared: Any) -> Any:
    """`run(*shared, batch)` over the leading axis of `items`, with a progress bar.

    Leaves of `items` need a shape and rows by index, no more: only a batch at a time is read and
    brought to the devices. The results are NumPy arrays.
    """
    count = _count(items)
    with progress(what, count) as show:
        return walker(run, min(size, count), *shared)(items, show)


def walker(run: Callable[..., Any], size: int, *shared: Any) -> Walk:
    """A function `(items, show) -> results` that calls `run(*shared, batch)` for `size` at a time.

    Each batch is spread over the local devices, as `place` says, whose number `size` is rounded up
    to a multiple of. The last batch is padded, so that one compilation serves all of them, and all
    further items.
    """
    devices = device_mesh(jax.local_devices())
    size = -(-size // devices.size) * devices.size
    placed, put = place(shared, devices)

    def walk(items: Any, show: Show) -> Any:
        count = _count(items)
        done = []
        for start in range(0, count, size):
            index = np.minimum(np.arange(start, start + size), count - 1)
            batch = jax.tree.map(lambda a, index=index: a[index], items)
            result = run(*placed, put(batch, devices))
            kept = min(size, count - start)
            done.append(jax.tree.map(lambda a, kept=kept: np.asarray(a)[:kept], result))
            show(kept)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *done)

    return walk


def _count(items: Any) -> int:
    return jax.tree.leaves(items)[0].shape[0]
