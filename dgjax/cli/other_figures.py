"""Figures of samples that are no pictures: sequences as lines, volumes by their middle slice."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dgjax.checkpoints.opened import Model, density_title
from dgjax.pictures.grid import image_grid, save_figure
from dgjax.pictures.line_grid import line_grid
from dgjax.pictures.quantization import to_uint8

__all__ = ["is_drawn", "write_other_figure"]

SHOWN = 6  # latents in the figure, at most


def is_drawn(model: Model) -> bool:
    """Return whether samples are sequences (L, C) or volumes (D, H, W, 1 or 3)."""
    shape = model.image_shape
    is_volume = len(shape) == 4 and shape[-1] in (1, 3)
    return not model.meta.latent and (len(shape) == 2 or is_volume)


def write_other_figure(
    file: Path, chosen: Model, summary: dict[str, Any], x: np.ndarray, complete: str
) -> None:
    """Write a figure of the first latents, with a row for each dial.

    Args:
        file: a PNG file.
        chosen: the model.
        summary: with the rows of the dials.
        x: samples (dials, n, *shape) for which `is_drawn` holds.
        complete: which files are written already, for the error message.

    Raises:
        ValueError: if it cannot be drawn.
    """
    name = "target" if "target_log_density" in summary["rows"][0] else "q"
    labels = [
        f"{name} = {row.get('q', row.get('target_log_density')):g}\n"
        f"{row['log_density_mean']:,.0f} nats"
        for row in summary["rows"]
    ]
    title = "The same latents at rising log-density"
    caption = f"{chosen.name}; mean {density_title(summary)}"
    shown = np.asarray(x)[:, :SHOWN]
    figure: Figure
    if shown.ndim == 4:
        figure = line_grid(shown, labels, title=title, caption=caption)
    else:
        middle = to_uint8(shown[:, :, shown.shape[2] // 2], chosen.meta.data_range)
        caption += "; the middle slice of each volume"
        figure = image_grid(middle, labels, title=title, caption=caption)
    save_figure(file, figure, complete)
