"""Samples in users' files: images of the model's size, and arrays in npy and npz files.

uint8 arrays and images are 8-bit levels of pictures; float arrays are samples in the model's
coordinates. For a latent model, pictures must be encoded before they are samples.

Every file is checked at first and read again when its samples are used, so that only one file at
a time is in memory.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dgjax.checkpoints.opened import Model
from dgjax.pictures.image_files import (
    FULL,
    IMAGE_SUFFIXES,
    PictureNotes,
    convert_colours,
    image_shape,
    read_image,
)
from dgjax.pictures.latents import from_levels

__all__ = ["LazySamples", "SampleFile", "encode_levels", "find_samples", "read_samples"]

ARRAYS = (".npz", ".npy")
NAMED = 3  # files in a message, at most


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


def find_samples(
    paths: Sequence[Path], note: Callable[[str], object] = lambda line: None
) -> list[Path]:
    """Return files as they are, and in place of a folder its images and arrays, sorted.

    Figures that commands draw beside their samples are left out: a PNG file beside an npz file of
    the same name, or samples.png beside summary.json.

    Args:
        paths: files, and folders with files at any depth.
        note: called with a line for each folder in which figures or other files are left out.

    Raises:
        ValueError: if a folder has neither images nor arrays.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        wanted = (*IMAGE_SUFFIXES, *ARRAYS)
        everything = sorted(path.rglob("*"))
        inside = [f for f in everything if f.suffix.lower() in wanted]
        there = set(everything)
        figures = [f for f in inside if _is_figure(f, there)]
        if figures:
            names = _listed([f.relative_to(path).as_posix() for f in figures])
            note(f"left out of {path}, figures of the samples beside them: {names}")
            inside = [f for f in inside if not _is_figure(f, there)]
        if not inside:
            raise ValueError(
                f"there are no samples in the folder {path}: none of its files ends in {wanted}"
            )
        files += inside
        left = [f for f in everything if f.is_file() and f.suffix.lower() not in wanted]
        others = [f.relative_to(path).as_posix() for f in left]
        if others := [name for name in others if not name.startswith(".") and "/." not in name]:
            what = "1 file" if len(others) == 1 else f"{len(others):,} files"
            note(f"skipped {what} in {path}, neither images nor arrays: {_listed(others)}")
    return files


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _is_figure(file: Path, there: set[Path]) -> bool:
    """Return whether a file is a picture of samples that lie beside it, among the files `there`."""
    if file.suffix.lower() != ".png":
        return False
    in_shards = file.name == "samples.png" and file.with_name("summary.json") in there
    return in_shards or file.with_suffix(".npz") in there


def read_samples(
    files: list[Path],
    model: Model,
    levels: tuple[float, float] = FULL,
    note: Callable[[str], object] = lambda line: None,
) -> list[SampleFile]:
    """Check files of samples and return them for reading on demand.

    Args:
        files: images of the model's size; npy files, or npz files with an array `x` or `arr_0`, of
            uint8 levels (..., *image_shape) or floats (..., *shape).
        model: the model that the samples are for.
        levels: of black and of white in pictures of 16 bits.
        note: called with one line if these pictures use few of their levels, and if their colours
            are lost.

    Raises:
        ValueError: if a file does not hold samples of the model; the message names the file.
    """
    found, seen = [], PictureNotes(levels)
    for file in files:
        is_array = file.suffix.lower() in ARRAYS
        read = partial(_read_array, file, model) if is_array else partial(_read, file, model, seen)
        values = read()
        names = [f"{file.name}[{i}]" for i in range(len(values))] if is_array else [file.name]
        found.append(SampleFile(names, values.dtype == np.uint8, read))
    for line in seen.notes("state their data range, such as 0 4095"):
        note(line)
    return found


def encode_levels(file: SampleFile, model: Model) -> SampleFile:
    """Return a file whose `read` encodes levels as samples; a file of floats stays as it is."""
    if not file.quantized:
        return file
    return file._replace(read=lambda: from_levels(model, file.read()))


def _read(file: Path, model: Model, notes: PictureNotes) -> np.ndarray:
    shape = image_shape(model.image_shape)
    image = read_image(file)
    if (image.height, image.width) != shape[:2]:
        raise ValueError(
            f"{file} is {image.width}x{image.height} and {model.name} takes "
            f"{shape[1]}x{shape[0]}: resize it first"
        )
    notes.look(image, shape)
    return np.asarray(convert_colours(image, shape, notes.levels)).reshape(1, *shape)


def _read_array(file: Path, model: Model) -> np.ndarray:
    try:
        # NumPy does not close a damaged file if it has opened it itself.
        with file.open("rb") as stream:
            loaded = np.load(stream)
            if isinstance(loaded, np.ndarray):
                x = loaded
            else:
                x = loaded["x" if "x" in loaded else "arr_0"]
    except FileNotFoundError:
        raise ValueError(f"there is no file {file}") from None
    except KeyError:
        raise ValueError(f"{file} has no array x, and no arr_0") from None
    except Exception as error:  # NumPy and zipfile raise a handful of kinds on damaged files
        raise ValueError(f"{file} cannot be read as {file.suffix[1:]}: {error}") from error
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
            f"{bad[0]} ({bad.size} of {len(x)} rows are bad): take these rows out"
        )
    return values
