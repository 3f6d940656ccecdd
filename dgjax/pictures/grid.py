"""Matplotlib figures of samples in rows and columns, with labels."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from dgjax.files import replace_file
from dgjax.messages import printable
from dgjax.pictures.picture import Picture

__all__ = ["image_grid", "save_figure"]


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
        A figure that is not registered with pyplot. Notebooks show it, and
        `figure.savefig(file)` saves it.

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
    cell, label = 0.95, 1.75
    width_in = width * cell + label + 0.15
    # Texts above and below are wrapped to the width: a character takes 0.55 of its height.
    head = wrap(printable(title), int(width_in * 72 / (0.55 * 10))) if title else []
    foot = wrap(printable(caption), int(width_in * 72 / (0.55 * 7.5))) if caption else []
    bottom = 0.2 + 0.15 * max(1, len(foot))
    top = (
        0.08
        + (0.12 + 0.18 * len(head) if head else 0.0)
        + (0.17 * (1 + column_labels[0].count("\n")) if column_labels else 0.0)
    )
    height_in = count * cell + top + bottom
    figure = Picture(figsize=(width_in, height_in), dpi=150)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        # Without mathtext: a $ in a name is a $.
        shown = printable(text, lines=True)
        figure.text(x / width_in, y / height_in, shown, parse_math=False, **style)

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
        middle = bottom + (count - 0.52 - r) * cell
        write(label - 0.12, middle, row_labels[r], ha="right", va="center", fontsize=9)
    for c, text in enumerate(column_labels):
        middle = label + (c + 0.48) * cell
        write(middle, height_in - top + 0.04, text, ha="center", va="bottom", fontsize=8)
    write(0.12, height_in - 0.1, "\n".join(head), va="top", fontsize=10)
    write(0.12, 0.1, "\n".join(foot), va="bottom", fontsize=7.5, color="0.3")
    return figure


def save_figure(file: Path, figure: Figure, complete: str) -> None:
    """Write a figure as a PNG file; if that fails, an older figure is removed.

    Args:
        file: the file.
        figure: the figure.
        complete: which files are written already, for the error message.

    Raises:
        ValueError: if the figure cannot be drawn or written.
    """
    try:
        replace_file(file, lambda stream: figure.savefig(stream, format="png"))
    except Exception as error:  # of Matplotlib and its fonts, which raise many kinds
        file.unlink(missing_ok=True)
        raise ValueError(f"{error} ({file.name} is not drawn, {complete} complete)") from error
