"""Matplotlib figures of sequences in rows and columns, as lines."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from dgjax.pictures.picture import Picture

__all__ = ["line_grid"]


def line_grid(
    x: Float[np.ndarray, "r c length channels"],
    row_labels: Sequence[str],
    *,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw sequences in R rows and C columns, all on one scale, with a label beside each row.

    Args:
        x: sequences (R, C, L, channels); each channel is one line. Values that are not finite are
            left out.
        row_labels: R labels, whose lines are separated by newlines.
        title: text above the sequences.
        caption: small text below them.

    Returns:
        A figure that is not registered with pyplot. Notebooks show it, and
        `figure.savefig(file)` saves it.

    Raises:
        ValueError: if `x` has another number of axes, or there are not R row labels.
    """
    if x.ndim != 4 or len(row_labels) != len(x):
        raise ValueError(
            f"expected sequences (rows, columns, L, channels) and a label per row, got {x.shape} "
            f"and {len(row_labels)} labels"
        )
    rows, columns, length, _ = x.shape
    figure = Picture(figsize=(1.6 * columns + 1.9, 0.9 * rows + 0.9), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for r in range(rows):
        for c in range(columns):
            values = np.where(np.isfinite(x[r, c]), x[r, c], np.nan)
            axes[r, c].plot(np.arange(length), values, linewidth=0.8)
            axes[r, c].tick_params(labelsize=6)
        axes[r, 0].set_ylabel(
            row_labels[r], rotation=0, ha="right", va="center", fontsize=8, parse_math=False
        )
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.supxlabel(caption, fontsize=7, color="0.3", parse_math=False)
    return figure
