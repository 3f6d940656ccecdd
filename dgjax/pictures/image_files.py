"""Image files, cropped and resized to a model's shape as 8-bit levels (H, W, C)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dgjax.pictures.quantization import to_uint8

__all__ = [
    "FORMATS",
    "FULL",
    "IMAGE_SUFFIXES",
    "PictureNotes",
    "check_levels",
    "convert_colours",
    "cover_image",
    "fit_image",
    "image_shape",
    "read_image",
]

# Others are left to their programs: Pillow hands PostScript to Ghostscript, which runs it.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".bmp")
GREY = ("1", "L", "LA", "F")  # modes of Pillow
FULL = (0, 65535)  # levels of black and white in pictures of 16 bits


class PictureNotes:
    """Note what pictures lose on the way to a model: levels of 12 bits, and colours.

    Args:
        levels: of black and of white, as of `convert_colours`.
    """

    def __init__(self, levels: tuple[float, float] = FULL) -> None:
        self.levels = levels
        self.largest: int | None = None
        self.coloured = 0

    def look(self, image: Image.Image, shape: tuple[int, ...]) -> None:
        """Take note of one image, which becomes one of `shape`."""
        if image.mode.startswith("I;16"):
            self.largest = max(self.largest or 0, int(np.asarray(image).max()))
        self.coloured += shape[-1] == 1 and _has_colours(image)

    def notes(self, fix: str) -> Iterator[str]:
        """Yield a line if pictures of 16 bits use few of their levels, and if colours are lost.

        Args:
            fix: how the range of levels is stated, for the message.
        """
        if self.coloured:
            what = "1 picture is" if self.coloured == 1 else f"{self.coloured:,} pictures are"
            yield f"{what} in colour and the model is of grey ones: only their grey levels are used"
        low, high = self.levels
        if self.largest is not None and self.largest - low < (high - low) / 2:
            count = max(int((self.largest - low) * 255 / (high - low)), 0) + 1
            yield (
                f"pictures of 16 bits have levels up to {self.largest:,} of {high:,}, and become "
                f"{count} of 256 levels: {fix}, or scale them first"
            )


def _has_colours(image: Image.Image) -> bool:
    """Return whether channels differ by more than JPEG files of grey pictures do."""
    if image.mode in GREY or image.mode.startswith("I"):
        return False
    # Some pixels of a large picture are enough.
    size = min(image.width, 256), min(image.height, 256)
    some = image.resize(size, Image.Resampling.NEAREST)
    return bool(np.ptp(np.asarray(some.convert("RGB")), axis=-1).max() > 16)


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


def check_levels(levels: tuple[float, float]) -> None:
    """Check the levels of black and of white, as of `convert_colours`.

    Raises:
        ValueError: if they are not two numbers from 0 to 65535, black below white.
    """
    if not (len(levels) == 2 and 0 <= levels[0] < levels[1] <= 65535):
        raise ValueError(
            f"the levels of black and white must rise from 0 to at most 65535, got {levels}; "
            "pictures of 12 bits have 0 and 4095"
        )


def fit_image(
    image: Image.Image, shape: tuple[int, ...], levels: tuple[float, float] = FULL
) -> np.ndarray:
    """Crop an image around its centre and resize it to exactly `shape`.

    Args:
        image: a Pillow image of any size and mode.
        shape: (H, W, 1) for grey or (H, W, 3) for RGB.
        levels: as of `convert_colours`.

    Returns:
        uint8 levels of `shape`.

    Raises:
        ValueError: if `shape` is not an image's, or the image has 32 bits per level.
    """
    height, width, _ = image_shape(shape)
    colours = convert_colours(image, shape, levels)
    fitted = ImageOps.fit(colours, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(shape)


def cover_image(
    image: Image.Image, shape: tuple[int, ...], levels: tuple[float, float] = FULL
) -> np.ndarray:
    """Resize an image, without cropping, to the smallest size that covers `shape`.

    Args:
        image: a Pillow image of any size and mode.
        shape: (H, W, 1) for grey or (H, W, 3) for RGB.
        levels: as of `convert_colours`.

    Returns:
        uint8 levels whose height or width is that of `shape` and whose other side is no smaller.

    Raises:
        ValueError: if `shape` is not an image's, or the image has 32 bits per level.
    """
    height, width, channels = image_shape(shape)
    colours = convert_colours(image, shape, levels)
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


def convert_colours(
    image: Image.Image, shape: tuple[int, ...], levels: tuple[float, float] = FULL
) -> Image.Image:
    """Convert an image to 8-bit grey or RGB, as the last axis of `shape` says.

    Args:
        image: a Pillow image of any mode. Transparent parts are shown on black.
        shape: (H, W, 1) for grey or (H, W, 3) for RGB.
        levels: of black and of white in pictures of 16 bits; those beyond are clipped.

    Raises:
        ValueError: if the image has 32 bits per level, whose range is unknown.
    """
    if image.mode.startswith("I;16"):  # Pillow would clip all levels above 255
        image = Image.fromarray(to_uint8(np.asarray(image), levels))
    elif image.mode in ("I", "F"):
        raise ValueError("an image has levels of 32 bits; save it with 8 or 16")
    if image.mode in ("RGBA", "LA", "PA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L" if shape[-1] == 1 else "RGB")
