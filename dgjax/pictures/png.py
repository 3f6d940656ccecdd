"""8-bit levels as Pillow images and PNG files; the size of a PNG file measures detail."""

import io

import numpy as np
from jaxtyping import ArrayLike, UInt8
from PIL import Image

from dgjax.pictures.quantization import to_uint8

__all__ = ["encode_png", "png_bytes", "to_image"]


def to_image(levels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Make a Pillow image of 8-bit levels.

    Args:
        levels: (H, W, 1) for grey or (H, W, 3) for RGB.

    Raises:
        ValueError: if `levels` is not uint8, or not (H, W, 1) or (H, W, 3).
    """
    if levels.ndim != 3 or levels.shape[-1] not in (1, 3):
        raise ValueError(f"an image has shape (H, W, 1) or (H, W, 3), got {levels.shape}")
    if levels.dtype != np.uint8:
        raise ValueError(f"levels must be uint8, got {levels.dtype}: convert with to_uint8 first")
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def encode_png(levels: UInt8[np.ndarray, "h w c"]) -> bytes:
    """Encode 8-bit levels as an optimised PNG file.

    Args:
        levels: (H, W, 1) for grey or (H, W, 3) for RGB.

    Returns:
        The content of the file.

    Raises:
        ValueError: if `levels` is not uint8, or not (H, W, 1) or (H, W, 3).
    """
    buffer = io.BytesIO()
    to_image(levels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def png_bytes(x: ArrayLike, data_range: tuple[float, float] = (-1.0, 1.0)) -> int:
    """Return the size of one sample as an optimised 8-bit PNG file: a measure of its detail.

    Args:
        x: one sample (H, W, 1 or 3) in the model's coordinates.
        data_range: values shown as black and white.

    Returns:
        The size in bytes. If you have 8-bit levels already, use `len(encode_png(levels))`.

    Raises:
        ValueError: if `x` is not (H, W, 1) or (H, W, 3).
    """
    return len(encode_png(to_uint8(x, data_range)))
