"""Matplotlib figures of samples in rows and columns, with labels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

__all__ = ["image_grid"]


def image_grid(
    levels: UInt8[np.ndarray, "r c h w channels"],
    row_labels: Sequence[str],
    *,
    column_labels: Sequence[str] = (),
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw images in R rows and C columns, with a label beside each row.

    Args:
        levels: uint8 levels (R, C, H, W, 1 or 3), from `to_uint8`.
        row_labels: R labels, whose lines are separated by newlines.
        column_labels: C labels, or none.
        title: text above the images.
        caption: small text below the images.

    Returns:
        A figure, which is not registered with pyplot: save it with `figure.savefig(file)`.

    Raises:
        ValueError: if `levels` is not uint8 of the shape above, or there are not R row labels.
    """
    if levels.ndim != 5 or levels.shape[-1] not in (1, 3) or len(row_labels) != len(levels):
        raise ValueError(
            f"expected images (rows, columns, H, W, 1 or 3) and a label per row, got "
            f"{levels.shape} and {len(row_labels)} labels"
        )
    if levels.dtype != np.uint8:
        raise ValueError(f"levels must be uint8, got {levels.dtype}: convert with to_uint8 first")
    count, width = levels.shape[:2]
    cell, label, bottom = 0.95, 1.75, 0.35
    top = (
        0.08
        + (0.3 if title else 0.0)
        + (0.17 * (1 + column_labels[0].count("\n")) if column_labels else 0.0)
    )
    height_in = count * cell + top + bottom
    width_in = width * cell + label + 0.15
    figure = Figure(figsize=(width_in, height_in), dpi=150)
    for r in range(count):
        for c in range(width):
            left = (label + c * cell) / width_in
            low = (bottom + (count - 1 - r) * cell) / height_in
            axes = figure.add_axes((left, low, 0.96 * cell / width_in, 0.96 * cell / height_in))
            image = levels[r, c]
            grey = image.shape[-1] == 1
            axes.imshow(
                image[..., 0] if grey else image,
                cmap="gray" if grey else None,
                vmin=0,
                vmax=255,
                interpolation="nearest",
            )
            axes.set_axis_off()
        middle = (bottom + (count - 0.52 - r) * cell) / height_in
        figure.text(
            (label - 0.12) / width_in, middle, row_labels[r], ha="right", va="center", fontsize=9
        )
    for c, text in enumerate(column_labels):
        figure.text(
            (label + (c + 0.48) * cell) / width_in,
            (height_in - top + 0.04) / height_in,
            text,
            ha="center",
            va="bottom",
            fontsize=8,
        )
    if title:
        figure.text(0.12 / width_in, 1 - 0.1 / height_in, title, va="top", fontsize=10)
    if caption:
        figure.text(
            0.12 / width_in, 0.1 / height_in, caption, va="bottom", fontsize=7.5, color="0.3"
        )
    return figure
