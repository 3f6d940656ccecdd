"""Reading what users hold: PNG and other images, and npz files."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dgjax.cli.options import Model

__all__ = ["Loaded", "fit_image", "read_image", "read_samples"]


class Loaded(NamedTuple):
    """Samples of one file: (n, *shape), uint8 levels or float32 in the model's coordinates."""

    names: list[str]
    values: np.ndarray


def read_image(file: Path) -> Image.Image:
    """An image file, turned upright.

    Raises:
        ValueError: if the file is missing, empty, damaged or no image.
    """
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).copy()
    except FileNotFoundError:
        raise ValueError(f"there is no file {file}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{file} is not an image that can be read (or it is empty)") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def fit_image(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """8-bit levels (H, W, C) of the model's shape: centred crop, resized, in its colours.

    Raises:
        ValueError: if the model's samples are no images.
    """
    height, width, _ = _image_shape(shape)
    image = _colours(image, shape)
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(shape)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(f"this model's samples have shape {shape}: it takes npz files, no images")
    return shape


def _colours(image: Image.Image, shape: tuple[int, ...]) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "P"):  # what is transparent is shown on black
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L" if shape[-1] == 1 else "RGB")


def read_samples(files: list[Path], model: Model) -> list[Loaded]:
    """Every sample of `files`: images of the model's own size, or npz files with an array x.

    Raises:
        ValueError: naming the first file that does not hold the model's samples.
    """
    return [_read_npz(f, model) if f.suffix == ".npz" else _read_exact(f, model) for f in files]


def _read_exact(file: Path, model: Model) -> Loaded:
    shape = _image_shape(model.meta.shape)
    image = read_image(file)
    if (image.height, image.width) != shape[:2]:
        raise ValueError(
            f"{file} is {image.width}x{image.height} and {model.name} takes "
            f"{shape[1]}x{shape[0]}: resize it first (dgjax edit does it by itself)"
        )
    return Loaded([file.name], np.asarray(_colours(image, shape)).reshape(1, *shape))


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
