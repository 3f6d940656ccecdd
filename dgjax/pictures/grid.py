"""Pictures: grids of samples with what was asked for and what was measured beside each row."""

from collections.abc import Sequence

from jaxtyping import ArrayLike
from matplotlib.figure import Figure

from dgjax.pictures.quantization import to_uint8

__all__ = ["image_grid"]


def image_grid(
    x: ArrayLike,
    rows: Sequence[str],
    *,
    data_range: tuple[float, float] = (-1.0, 1.0),
    columns: Sequence[str] = (),
    title: str = "",
    caption: str = "",
) -> Figure:
    """A figure of images (R, C, H, W, channels) with a label for every row.

    Args:
        x: samples in the model's coordinates.
        rows: R labels, lines separated by newlines.
        data_range: values shown as black and white.
        columns: C labels, or none.
        title, caption: above and below the images.

    Raises:
        ValueError: if x is not (R, C, H, W, 1 or 3) with R labels.
    """
    images = to_uint8(x, data_range)
    if images.ndim != 5 or images.shape[-1] not in (1, 3) or len(rows) != len(images):
        raise ValueError(
            f"expected images (rows, columns, H, W, 1 or 3) and a label per row, got "
            f"{images.shape} and {len(rows)} labels"
        )
    count, width = images.shape[:2]
    cell, label, bottom = 0.95, 1.75, 0.35
    top = 0.08 + (0.3 if title else 0.0) + (0.17 * (1 + columns[0].count("\n")) if columns else 0.0)
    height_in = count * cell + top + bottom
    width_in = width * cell + label + 0.15
    figure = Figure(figsize=(width_in, height_in), dpi=150)
    for r in range(count):
        for c in range(width):
            left = (label + c * cell) / width_in
            low = (bottom + (count - 1 - r) * cell) / height_in
            axes = figure.add_axes((left, low, 0.96 * cell / width_in, 0.96 * cell / height_in))
            image = images[r, c]
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
        figure.text((label - 0.12) / width_in, middle, rows[r], ha="right", va="center", fontsize=9)
    for c, text in enumerate(columns):
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
