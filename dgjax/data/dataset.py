"""A data set held whole in memory, and samples of it in the model's coordinates."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike

__all__ = ["Dataset", "Uncut"]


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

    def cut(self, indices: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(B, H, W, C): of each image at `indices` a window.

        `places` (B, 2) in [0, 1) say where between top and bottom, and left and right.
        """
        height, width, _ = self.window
        windows = []
        for index, (down, along) in zip(indices, places, strict=True):
            image = self.images[index]
            top = int(down * (image.shape[0] - height + 1))
            left = int(along * (image.shape[1] - width + 1))
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
        places: np.ndarray | None = None,
        mirrored: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples at `indices` in the model's coordinates, (B, *shape) in float32.

        Args:
            indices: (B,) of the samples.
            places: (B, 2) in [0, 1), where images are cut; needed only if they are.
            mirrored: (B,), which images are mirrored left-right; none unless given.

        Raises:
            ValueError: if images are to be cut and there are no `places`.
        """
        indices = np.asarray(indices)
        if isinstance(self.values, np.ndarray):
            chosen = self.values[indices]
        elif places is not None:
            chosen = self.values.cut(indices, places)
        else:
            raise ValueError("these images are cut at random places: give batch the places")
        x = chosen.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)
        if mirrored is not None:
            x[mirrored] = x[mirrored, :, ::-1]
        return x
