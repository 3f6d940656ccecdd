"""From a data set to batches on their way to the devices: order, crops, flips, look-ahead.

Batch n is a function of the seed and n alone, on any number of hosts: a resumed run sees the very
batches that an uninterrupted one would have seen, and each host makes only its own rows of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dgjax.data.dataset import Dataset

__all__ = ["Augment", "HostBatch", "batches", "order"]


class HostBatch(NamedTuple):
    """A `Batch` in NumPy's arrays."""

    data: np.ndarray
    labels: np.ndarray | None = None
    augmentations: np.ndarray | None = None


@dataclass(frozen=True)
class Augment:
    """What is done to the samples of a batch, and what the network is given beside them.

    Attributes:
        flip: probability that an image is mirrored left-right.
        given: fields of `HostBatch`, where the data have them: `labels`, and `augmentations`, 0
            for a mirrored image and 1, which stands for none, else.
    """

    flip: float = 0.0
    given: frozenset[str] = frozenset()

    def __call__(
        self, data: Dataset, indices: np.ndarray, rows: slice, rng: np.random.Generator
    ) -> HostBatch:
        """The `rows` of the batch of samples at `indices` (B,)."""
        # Drawn for the whole batch, so that each row's are the same wherever it is made.
        places = rng.random((len(indices), 2))[rows]
        mirrored = (rng.random(len(indices)) < self.flip)[rows]
        chosen = indices[rows]
        beside = {
            "labels": None if data.labels is None else data.labels[chosen],
            "augmentations": (1 - mirrored).astype(np.int32),
        }
        return HostBatch(
            data.batch(chosen, places=places, mirrored=mirrored if self.flip else None),
            **{field: value for field, value in beside.items() if field in self.given},
        )


def order(size: int, batch: int, seed: int) -> Any:
    """Batches of indices, without end: epochs, each in an order of its own, cut into batches.

    A batch may reach over the end of an epoch into the next, so every sample is seen once an
    epoch. It is a `grain.MapDataset`: `order(...)[n]` is batch n.

    Raises:
        ValueError: if grain is not installed.
    """
    try:
        import grain
    except ImportError as error:
        raise ValueError('training needs grain: `pip install "dgjax[train]"`') from error
    return grain.MapDataset.range(size).seed(seed).shuffle().repeat().batch(batch)


def batches(
    data: Dataset,
    augment: Augment,
    *,
    batch: int,
    seed: int,
    start: int,
    rows: slice = slice(None),
    threads: int = 2,
    ahead: int = 8,
) -> Iterator[HostBatch]:
    """Batches from number `start` on, in float32, made in the background.

    Args:
        data: what to draw from.
        augment: what to do to it.
        batch: number of samples in a batch.
        seed: of order, crops and flips.
        start: number of the first batch.
        rows: of each batch, those that are made.
        threads: that make batches.
        ahead: number of batches that lie ready.

    Raises:
        ValueError: if grain is not installed.
    """
    indices = order(len(data), batch, seed)

    def make(indices: np.ndarray, rng: np.random.Generator) -> HostBatch:
        return augment(data, indices, rows, rng)

    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    iterator = iter(indices.random_map(make).to_iter_dataset(options))
    iterator.set_state({**iterator.get_state(), "next_index": start})
    return iterator
