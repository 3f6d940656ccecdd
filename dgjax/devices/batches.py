"""Run a function on any number of samples in batches of one size, over all local devices.

A function is compiled once: every batch has the same size, and the last one is padded.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dgjax.devices.placement import place_shared
from dgjax.devices.progress import Show, progress
from dgjax.devices.sharding import device_mesh

__all__ = ["BatchRunner", "batch_runner", "map_batches"]

BatchRunner = Callable[[Any, Show], Any]


def map_batches(what: str, run: Callable[..., Any], items: Any, size: int, *shared: Any) -> Any:
    """Call `run(*shared, batch)` for batches along the leading axis of `items`.

    Shows a progress bar. Only one batch at a time is read and sent to the devices.

    Args:
        what: the text of the progress bar.
        run: a compiled function of the shared arguments and one batch.
        items: a pytree whose leaves have one leading axis in common. Leaves need a `shape` and
            indexing by rows, no more.
        size: samples per batch, rounded up to a multiple of the number of devices.
        *shared: arguments that are the same for all batches, such as the model.

    Returns:
        The results of all samples as NumPy arrays, one after another along the leading axis.
    """
    count = _count(items)
    with progress(what, count) as show:
        return batch_runner(run, min(size, count), *shared)(items, show)


def batch_runner(run: Callable[..., Any], size: int, *shared: Any) -> BatchRunner:
    """Return a function `(items, show) -> results` that does what `map_batches` does.

    The shared arguments are placed on the devices once, and all calls of the returned function use
    one compilation of `run`.

    Args:
        run: as of `map_batches`.
        size: as of `map_batches`.
        *shared: as of `map_batches`.

    Returns:
        The function. It calls `show(n)` after every batch of n samples.
    """
    devices = device_mesh(jax.local_devices())
    size = -(-size // devices.size) * devices.size
    placed, place_batch = place_shared(shared, devices)

    def run_batches(items: Any, show: Show) -> Any:
        count = _count(items)
        done = []
        for start in range(0, count, size):
            index = np.minimum(np.arange(start, start + size), count - 1)
            batch = jax.tree.map(lambda a, index=index: a[index], items)
            result = run(*placed, place_batch(batch, devices))
            kept = min(size, count - start)
            done.append(jax.tree.map(lambda a, kept=kept: np.asarray(a)[:kept], result))
            show(kept)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *done)

    return run_batches


def _count(items: Any) -> int:
    return jax.tree.leaves(items)[0].shape[0]
