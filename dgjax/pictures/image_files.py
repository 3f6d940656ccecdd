"""Image files, cropped and resized to a model's shape as 8-bit levels (H, W, C)."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["FORMATS", "convert_colours", "cover_image", "fit_image", "image_shape", "read_image"]

# Others are left to their programs: Pillow hands PostScript to Ghostscript, which runs it.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")


def read_image(file: Path) -> Image.Image:
    """Read an image file and apply the rotation in its EXIF data.

    Args:
        file: an image in one of `FORMATS`.

    Raises:
        ValueError: if the file is missing, empty, damaged or not an image.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            return ImageOps.exif_transpose(image).copy()
    except FileNotFoundError:
        raise ValueError(f"there is no file {file}") from None
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ValueError(f"{file} is not an image ({formats}), or it is empty") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def fit_image(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """Crop an image around its centre and resize it to exactly `shape`.

    Args:
        image: a Pillow image of any size and mode.
        shape: (H, W, 1) for grey or (H, W, 3) for RGB.

    Returns:
        uint8 levels of `shape`.

    Raises:
        ValueError: if `shape` is not an image's, or the image has 32 bits per level.
    """
    height, width, _ = image_shape(shape)
    fitted = ImageOps.fit(convert_colours(image, shape), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(shape)


def cover_image(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """Resize an image, without cropping, to the smallest size that covers `shape`.

    Args:
        image: a Pillow image of any size and mode.
        shape: (H, W, 1) for grey or (H, W, 3) for RGB.

    Returns:
        uint8 levels whose height or width is that of `shape` and whose other side is no smaller.

    Raises:
        ValueError: if `shape` is not an image's, or the image has 32 bits per level.
    """
    height, width, channels = image_shape(shape)
    colours = convert_colours(image, shape)
    covering = ImageOps.cover(colours, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(covering).reshape(covering.height, covering.width, channels)


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return `shape` if it is (H, W, 1) or (H, W, 3).

    Raises:
        ValueError: if it is not.
    """
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(f"this model's samples have shape {shape}: it takes npz files, no images")
    return shape


def convert_colours(image: Image.Image, shape: tuple[int, ...]) -> Image.Image:
    """Convert an image to 8-bit grey or RGB, as the last axis of `shape` says.

    Args:
        image: a Pillow image of any mode. Transparent parts are shown on black.
        shape: (H, W, 1) for grey or (H, W, 3) for RGB.

    Raises:
        ValueError: if the image has 32 bits per level, whose range is unknown.
    """
    if image.mode.startswith("I;16"):  # Pillow would clip all levels above 255
        levels = (np.asarray(image).astype(np.uint32) + 128) // 257
        image = Image.fromarray(levels.astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("an image has levels of 32 bits; save it with 8 or 16")
    if image.mode in ("RGBA", "LA", "PA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L" if shape[-1] == 1 else "RGB")
