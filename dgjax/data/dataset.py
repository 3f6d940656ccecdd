"""A data set held in memory, and batches of it in the model's coordinates."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

__all__ = ["MOST", "Dataset", "UncroppedImages"]

MOST = 5  # names that a line lists
COMPARED = 16  # samples by which data are recognized


@dataclass(frozen=True)
class UncroppedImages:
    """Images of different sizes, from which every batch takes random crops.

    Attributes:
        images: N arrays (H_i, W_i, C), none smaller than the crop.
        crop_shape: (H, W, C) of a crop.
    """

    images: list[np.ndarray]
    crop_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, H, W, C), as of an array with one crop of each image."""
        return (len(self.images), *self.crop_shape)

    def crop(self, indices: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return one crop of each of the chosen images.

        Args:
            indices: of the images, (B,).
            positions: of the crops, (B, 2) in [0, 1): between top and bottom, left and right.

        Returns:
            The crops (B, H, W, C).
        """
        height, width, _ = self.crop_shape
        crops = []
        for index, (down, along) in zip(indices, positions, strict=True):
            image = self.images[index]
            top = int(down * (image.shape[0] - height + 1))
            left = int(along * (image.shape[1] - width + 1))
            crops.append(image[top : top + height, left : left + width])
        return np.stack(crops)


@dataclass(frozen=True)
class Dataset:
    """Samples as stored, and the linear map from stored values to the model's coordinates.

    Attributes:
        values: stored samples, (N, *shape), of any dtype; or images that are cropped to `shape`
            batch by batch.
        scale: a batch is `values * scale + offset`, in float32.
        offset: see `scale`.
        data_range: smallest and largest value in the model's coordinates.
        labels: whole numbers (N,), or None.
        licence: of the data, in one line.
        classes: names of the labels 0, 1, ..., or None.
        notes: one line each of what a user should know: files that were left out, and why.
    """

    values: np.ndarray | UncroppedImages
    scale: float
    offset: float
    data_range: tuple[float, float]
    labels: np.ndarray | None
    licence: str
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The number of samples and the names of their classes, in one line."""
        count = f"{len(self):,} samples"
        if self.classes is None:
            return count
        shown = ", ".join(self.classes[:MOST]) + (", ..." if len(self.classes) > MOST else "")
        return f"{count} of {len(self.classes):,} classes ({shown})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.values.shape[1:]

    def __len__(self) -> int:
        return self.values.shape[0]

    def standard_deviation(self, most: int = 1024) -> float:
        """Return the standard deviation of all values together, in the model's coordinates.

        Args:
            most: samples at even distances that are read at most.
        """
        indices = np.linspace(0, len(self) - 1, min(most, len(self))).astype(int)
        centres = np.full((len(indices), 2), 0.5)
        return float(self.batch(indices, positions=centres).std(dtype=np.float64))

    def content(self) -> dict[str, Any]:
        """Return numbers that tell these data from others, wherever they are stored.

        Returns:
            "labels": SHA-256 of all labels, or None; "projections": for some samples at even
            distances the sum of the values with fixed random signs, over the root of their number.
            Another decoder of JPEG moves a projection by less than a level, other data by as much
            as their values vary.
        """
        values = self.values if isinstance(self.values, np.ndarray) else self.values.images
        projections = []
        for index in np.linspace(0, len(self) - 1, min(COMPARED, len(self))).astype(int):
            sample = np.asarray(values[index], np.float64).reshape(-1)
            signs = np.random.default_rng(0).choice([-1.0, 1.0], sample.size)
            projections.append(float(signs @ sample * self.scale / np.sqrt(sample.size)))
        digest = None
        if self.labels is not None:
            digest = hashlib.sha256(np.asarray(self.labels, "<i8").tobytes()).hexdigest()
        return {"labels": digest, "projections": projections}

    def batch(
        self,
        indices: ArrayLike,
        *,
        positions: np.ndarray | None = None,
        mirrored: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return samples in the model's coordinates.

        Args:
            indices: of the samples, (B,).
            positions: of random crops, (B, 2) in [0, 1); needed only for images to be cropped.
            mirrored: which images to mirror left-right, (B,); none of them if None.

        Returns:
            Samples (B, *shape) in float32.

        Raises:
            ValueError: if images are to be cropped and there are no `positions`.
        """
        indices = np.asarray(indices)
        if isinstance(self.values, np.ndarray):
            chosen = self.values[indices]
        elif positions is not None:
            chosen = self.values.crop(indices, positions)
        else:
            raise ValueError("these images are cropped batch by batch: pass positions (B, 2)")
        x = chosen.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)
        if mirrored is not None:
            x[mirrored] = x[mirrored, :, ::-1]
        return x
