"""Input pipeline: shuffled batches with random crops and flips, made ahead in the background.

Batch n depends on the seed and on n only, for any number of hosts. So a resumed run sees the same
batches as an uninterrupted one, and each host makes only its own rows of every batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dgjax.data.dataset import Dataset
from dgjax.messages import install_line

__all__ = ["Augment", "HostBatch", "batch_indices", "training_batches"]


class HostBatch(NamedTuple):
    """This host's rows of a `dgjax.training.objective.Batch`, as NumPy arrays."""

    data: np.ndarray
    labels: np.ndarray | None = None
    augmentations: np.ndarray | None = None


@dataclass(frozen=True)
class Augment:
    """Random crops and flips of samples, and the choice of what the network is told.

    Attributes:
        flip: probability that an image is mirrored left-right.
        given: names of the fields of `HostBatch` that the network takes: "labels", where the data
            have them, and "augmentations", which is 0 for a mirrored image and 1 for another.
    """

    flip: float = 0.0
    given: frozenset[str] = frozenset()

    def __call__(
        self, data: Dataset, indices: np.ndarray, rows: slice, rng: np.random.Generator
    ) -> HostBatch:
        """Return the given rows of the batch of samples at `indices` (B,)."""
        # Drawn for the whole batch, so that a row does not depend on the host that makes it.
        positions = rng.random((len(indices), 2))[rows]
        mirrored = (rng.random(len(indices)) < self.flip)[rows]
        chosen = indices[rows]
        inputs = {
            "labels": None if data.labels is None else data.labels[chosen],
            "augmentations": (1 - mirrored).astype(np.int32),
        }
        return HostBatch(
            data.batch(chosen, positions=positions, mirrored=mirrored if self.flip else None),
            **{name: value for name, value in inputs.items() if name in self.given},
        )


def batch_indices(size: int, batch: int, seed: int) -> Any:
    """Return an endless sequence of batches of sample indices, shuffled in every epoch.

    A batch may contain the end of one epoch and the beginning of the next, so every sample is seen
    exactly once per epoch.

    Args:
        size: number of samples in the data set.
        batch: number of samples in a batch.
        seed: of the shuffling.

    Returns:
        A `grain.MapDataset`; its item n is batch n, (batch,).

    Raises:
        ValueError: if grain is not installed.
    """
    try:
        import grain
    except ImportError as error:
        raise ValueError(f"training needs grain: `{install_line('train')}`") from error
    return grain.MapDataset.range(size).seed(seed).shuffle().repeat().batch(batch)


def training_batches(
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
    """Return an endless iterator over batches, made in background threads.

    Args:
        data: the data set.
        augment: crops, flips and the fields of each batch.
        batch: number of samples in a batch, on all hosts together.
        seed: of order, crops and flips.
        start: number of the first batch.
        rows: which rows of each batch to make.
        threads: number of threads that make batches.
        ahead: number of batches to hold ready.

    Raises:
        ValueError: if grain is not installed.
    """
    indices = batch_indices(len(data), batch, seed)

    def make(indices: np.ndarray, rng: np.random.Generator) -> HostBatch:
        return augment(data, indices, rows, rng)

    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    iterator = iter(indices.random_map(make).to_iter_dataset(options))
    iterator.set_state({**iterator.get_state(), "next_index": start})
    return iterator
