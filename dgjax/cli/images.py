"""Samples in the files that users hold: images of the model's own size, and npz files."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dgjax.cli.options import Model
from dgjax.images import image_shape, read_image, to_colours

__all__ = ["Loaded", "read_samples"]


class Loaded(NamedTuple):
    """Samples of one file: (n, *shape), uint8 levels or float32 in the model's coordinates."""

    names: list[str]
    values: np.ndarray


def read_samples(files: list[Path], model: Model) -> list[Loaded]:
    """Every sample of `files`: images of the model's own size, or npz files with an array x.

    Raises:
        ValueError: naming the first file that does not hold the model's samples.
    """
    return [_read_npz(f, model) if f.suffix == ".npz" else _read_exact(f, model) for f in files]


def _read_exact(file: Path, model: Model) -> Loaded:
    shape = image_shape(model.meta.shape)
    image = read_image(file)
    if (image.height, image.width) != shape[:2]:
        raise ValueError(
            f"{file} is {image.width}x{image.height} and {model.name} takes "
            f"{shape[1]}x{shape[0]}: resize it first (dgjax edit does it by itself)"
        )
    return Loaded([file.name], np.asarray(to_colours(image, shape)).reshape(1, *shape))


def _read_npz(file: Path, model: Model) -> Loaded:
    try:
        with np.load(file) as arrays:
            x = arrays["x"]
    except FileNotFoundError:
        raise ValueError(f"there is no file {file}") from None
    except KeyError:
        raise ValueError(f"{file} has no array x") from None
    except Exception as error:  # NumPy and zipfile raise a handful of kinds on damaged files
        raise ValueError(f"{file} cannot be read as npz: {error}") from error
    shape = model.meta.shape
    if x.shape[-len(shape) :] != shape:
        raise ValueError(f"x in {file} has shape {x.shape} and {model.name} takes (..., {shape})")
    x = x.reshape(-1, *shape)
    if x.dtype != np.uint8 and not (x.dtype.kind == "f" and np.isfinite(x).all()):
        raise ValueError(f"x in {file} must be uint8 levels or finite floats, got {x.dtype}")
    names = [f"{file.name}[{i}]" for i in range(len(x))]
    return Loaded(names, x if x.dtype == np.uint8 else x.astype(np.float32))
