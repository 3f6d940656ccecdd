"""Samples in users' files: images of the model's size, and npz files with an array `x`.

uint8 arrays and images are 8-bit levels of pictures; float arrays are samples in the model's
coordinates. For a latent model, pictures must be encoded before they are samples.

Every file is checked at first and read again when its samples are used, so that only one file at
a time is in memory.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dgjax.checkpoints.opened import Model
from dgjax.pictures.image_files import convert_colours, image_shape, read_image
from dgjax.pictures.latents import from_levels

__all__ = ["LazySamples", "SampleFile", "encode_levels", "read_samples"]


class SampleFile(NamedTuple):
    """One file of samples, read on demand.

    Attributes:
        names: one name for each of its n samples.
        quantized: whether it holds uint8 levels.
        read: returns levels (n, *image_shape), or float32 samples (n, *shape) in the model's
            coordinates.
    """

    names: list[str]
    quantized: bool
    read: Callable[[], np.ndarray]


class LazySamples:
    """The samples of several files as one float32 array (n, *shape), read when it is indexed.

    Args:
        files: the files, in order.
        shape: of one sample.
    """

    def __init__(self, files: list[SampleFile], shape: tuple[int, ...]):
        self._ends = np.cumsum([len(file.names) for file in files])
        self._starts = np.concatenate([[0], self._ends])
        self._read = lru_cache(maxsize=1)(lambda i: files[i].read())
        self.shape = (int(self._ends[-1]), *shape)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        owner = np.searchsorted(self._ends, index, side="right").tolist()
        samples = [self._read(s)[i - self._starts[s]] for s, i in zip(owner, index, strict=True)]
        return np.stack(samples).astype(np.float32)


def read_samples(files: list[Path], model: Model) -> list[SampleFile]:
    """Check files of samples and return them for reading on demand.

    Args:
        files: images of the model's size, or npz files with an array `x` of uint8 levels
            (..., *image_shape) or floats (..., *shape).
        model: the model that the samples are for.

    Raises:
        ValueError: if a file does not hold samples of the model; the message names the file.
    """
    found = []
    for file in files:
        npz = file.suffix == ".npz"
        read = partial(_read_npz if npz else _read_exact, file, model)
        values = read()
        names = [f"{file.name}[{i}]" for i in range(len(values))] if npz else [file.name]
        found.append(SampleFile(names, values.dtype == np.uint8, read))
    return found


def encode_levels(file: SampleFile, model: Model) -> SampleFile:
    """Return a file whose `read` encodes levels as samples; a file of floats stays as it is."""
    if not file.quantized:
        return file
    return file._replace(read=lambda: from_levels(model, file.read()))


def _read_exact(file: Path, model: Model) -> np.ndarray:
    shape = image_shape(model.image_shape)
    image = read_image(file)
    if (image.height, image.width) != shape[:2]:
        raise ValueError(
            f"{file} is {image.width}x{image.height} and {model.name} takes "
            f"{shape[1]}x{shape[0]}: resize it first"
        )
    return np.asarray(convert_colours(image, shape)).reshape(1, *shape)


def _read_npz(file: Path, model: Model) -> np.ndarray:
    try:
        # NumPy does not close a damaged file if it has opened it itself.
        with file.open("rb") as stream, np.load(stream) as arrays:
            x = arrays["x"]
    except FileNotFoundError:
        raise ValueError(f"there is no file {file}") from None
    except KeyError:
        raise ValueError(f"{file} has no array x") from None
    except Exception as error:  # NumPy and zipfile raise a handful of kinds on damaged files
        raise ValueError(f"{file} cannot be read as npz: {error}") from error
    shape = model.image_shape if x.dtype == np.uint8 else model.meta.shape
    if x.shape[-len(shape) :] != shape:
        raise ValueError(
            f"x in {file} has shape {x.shape} and {model.name} takes (..., {shape})"
            + (f" of {x.dtype}" if model.meta.latent else "")
        )
    x = x.reshape(-1, *shape)
    if not len(x):
        raise ValueError(f"x in {file} has no samples: its shape is {x.shape}")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise ValueError(f"x in {file} must be uint8 levels or floats, got {x.dtype}")
    with np.errstate(over="ignore"):
        values = x.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(x), -1).all(1))
    if bad.size:
        raise ValueError(
            f"x in {file} has a number that is not finite, or too large for float32, in row "
            f"{bad[0]}, and {bad.size} such rows of {len(x)}: take these rows out"
        )
    return values
