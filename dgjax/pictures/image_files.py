"""Image files as 8-bit levels (H, W, C) of a model's shape."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["cover_image", "fit_image", "image_shape", "read_image", "to_colours"]


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
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def fit_image(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """8-bit levels (H, W, C) of `shape`: centred crop, resized, in its colours.

    Raises:
        ValueError: if `shape` is of no image, or the image has levels of 32 bits.
    """
    height, width, _ = image_shape(shape)
    fitted = ImageOps.fit(to_colours(image, shape), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(shape)


def cover_image(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """8-bit levels in the colours of `shape`, resized to be as high or as wide and no smaller.

    Raises:
        ValueError: if `shape` is of no image, or the image has levels of 32 bits.
    """
    height, width, channels = image_shape(shape)
    covering = ImageOps.cover(to_colours(image, shape), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(covering).reshape(covering.height, covering.width, channels)


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` itself, if it is of an image, (H, W, 1 or 3); a ValueError if not."""
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(f"this model's samples have shape {shape}: it takes npz files, no images")
    return shape


def to_colours(image: Image.Image, shape: tuple[int, ...]) -> Image.Image:
    """In 8 bits, grey or RGB as `shape` (H, W, 1 or 3) has it.

    Raises:
        ValueError: if the image has levels of 32 bits, whose range is not known.
    """
    if image.mode.startswith("I;16"):  # Pillow would clip all levels above 255
        levels = (np.asarray(image).astype(np.uint32) + 128) // 257
        image = Image.fromarray(levels.astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("an image has levels of 32 bits; save it with 8 or 16")
    if image.mode in ("RGBA", "LA", "PA", "P"):  # what is transparent is shown on black
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L" if shape[-1] == 1 else "RGB")
