"""Samples in the files that users hold: images of the model's own size, and npz files.

Levels of 8 bits are of pictures, floats of samples: where samples are latents, pictures are
encoded to be samples.

Every file is looked at first, and read again when its samples are due: one file at a time is in
memory, however many there are.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dgjax.checkpoints.opened import Model
from dgjax.pictures.image_files import image_shape, read_image, to_colours
from dgjax.pictures.latents import from_pictures, scale_levels

__all__ = ["Rows", "Source", "encode_levels", "read_samples"]


class Source(NamedTuple):
    """One file: names of its samples, whether they are uint8 levels, and what reads them.

    `read` gives (n, *image_shape) of levels, or (n, *shape) of float32 in the model's coordinates.
    """

    names: list[str]
    levels: bool
    read: Callable[[], np.ndarray]


class Rows:
    """The samples of all sources as one float32 array (n, *shape) whose rows are read on demand."""

    def __init__(self, sources: list[Source], shape: tuple[int, ...]):
        self._ends = np.cumsum([len(source.names) for source in sources])
        self._starts = np.concatenate([[0], self._ends])
        self._read = lru_cache(maxsize=1)(lambda i: sources[i].read())
        self.shape = (int(self._ends[-1]), *shape)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        owner = np.searchsorted(self._ends, index, side="right").tolist()
        rows = [self._read(s)[i - self._starts[s]] for s, i in zip(owner, index, strict=True)]
        return np.stack(rows).astype(np.float32)


def read_samples(files: list[Path], model: Model) -> list[Source]:
    """Sources of every sample in `files`: images of the model's own size, or npz with an array x.

    Raises:
        ValueError: naming the first file that does not hold the model's samples.
    """
    found = []
    for file in files:
        npz = file.suffix == ".npz"
        read = partial(_read_npz if npz else _read_exact, file, model)
        values = read()
        names = [f"{file.name}[{i}]" for i in range(len(values))] if npz else [file.name]
        found.append(Source(names, values.dtype == np.uint8, read))
    return found


def encode_levels(source: Source, model: Model) -> Source:
    """Samples in the place of levels, which they are the encoding of; other sources stay."""
    if not source.levels:
        return source

    def read():
        return from_pictures(model, scale_levels(model, source.read()))

    return source._replace(read=read)


def _read_exact(file: Path, model: Model) -> np.ndarray:
    shape = image_shape(model.image_shape)
    image = read_image(file)
    if (image.height, image.width) != shape[:2]:
        raise ValueError(
            f"{file} is {image.width}x{image.height} and {model.name} takes "
            f"{shape[1]}x{shape[0]}: resize it first (dgjax edit does it by itself)"
        )
    return np.asarray(to_colours(image, shape)).reshape(1, *shape)


def _read_npz(file: Path, model: Model) -> np.ndarray:
    try:
        with np.load(file) as arrays:
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
    if x.dtype != np.uint8 and not (x.dtype.kind == "f" and np.isfinite(x).all()):
        raise ValueError(f"x in {file} must be uint8 levels or finite floats, got {x.dtype}")
    if not len(x):
        raise ValueError(f"x in {file} has no samples: its shape is {x.shape}")
    return x if x.dtype == np.uint8 else x.astype(np.float32, copy=False)
