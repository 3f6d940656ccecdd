"""A data set held whole in memory, and batches that depend on the seed and the step alone.

So a resumed run sees the very batches that an uninterrupted one would have seen.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike

__all__ = ["Dataset", "Uncut", "batch_indices"]


@dataclass(frozen=True)
class Uncut:
    """Images of their own sizes, of which a batch takes a window each.

    Attributes:
        images: N of (H_i, W_i, C), none smaller than the window.
        window: (H, W, C).
    """

    images: list[np.ndarray]
    window: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C), as of an array of windows."""
        return (len(self.images), *self.window)

    def cut(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(B, H, W, C): of each image at `indices` a window, every place of it as likely."""
        height, width, _ = self.window
        windows = []
        for image in (self.images[i] for i in indices):
            top = rng.integers(image.shape[0] - height + 1)
            left = rng.integers(image.shape[1] - width + 1)
            windows.append(image[top : top + height, left : left + width])
        return np.stack(windows)


@dataclass(frozen=True)
class Dataset:
    """Samples as stored, and the line that takes them to the model's coordinates.

    Attributes:
        values: (N, *shape), of any dtype, or images that are cut to `shape` batch by batch.
        scale, offset: a batch is `values * scale + offset` in float32.
        data_range: (low, high) of a batch's values.
        labels: (N,) whole numbers, or None.
        licence: in one line.
        classes: names of the labels 0, 1, ..., where they have any.
    """

    values: np.ndarray | Uncut
    scale: float
    offset: float
    data_range: tuple[float, float]
    labels: np.ndarray | None
    licence: str
    classes: tuple[str, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.values.shape[1:]

    def __len__(self) -> int:
        return self.values.shape[0]

    def batch(
        self,
        indices: ArrayLike,
        *,
        flip: bool = False,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Samples at `indices` in the model's coordinates, (B, *shape) in float32.

        Args:
            indices: (B,) of the samples.
            flip: mirror every other one.
            rng: decides where images are cut; needed only if they are.

        Raises:
            ValueError: if images are to be cut and there is no `rng`.
        """
        indices = np.asarray(indices)
        if isinstance(self.values, np.ndarray):
            chosen = self.values[indices]
        elif rng is not None:
            chosen = self.values.cut(indices, rng)
        else:
            raise ValueError("these images are cut at random places: give batch an rng")
        x = chosen.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)
        if flip:  # indices are shuffled already, so this is as good as a coin per image
            x[::2] = x[::2, :, ::-1]
        return x


def batch_indices(seed: int, step: int, batch: int, size: int) -> np.ndarray:
    """Indices of the samples of one step: epochs, each in an order of its own, cut into batches.

    A batch may reach over the end of an epoch into the next, so every sample is seen once an epoch.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    epochs = places // size
    orders = {e: np.random.default_rng([seed, e]).permutation(size) for e in np.unique(epochs)}
    return np.array([orders[e][p] for e, p in zip(epochs, places % size, strict=True)])
