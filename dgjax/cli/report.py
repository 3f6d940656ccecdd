"""Summary, figure and table of the samples that `dgjax sample` draws."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgjax.checkpoints.opened import Model, density_title
from dgjax.cli.options import table
from dgjax.devices.progress import console
from dgjax.evaluation.moments import Moments, moments
from dgjax.pictures.grid import image_grid
from dgjax.pictures.latents import to_levels
from dgjax.pictures.quantization import bits_per_dim

__all__ = ["MEASURED", "measure", "show_table", "shown_levels", "summarize", "write_figure"]

MEASURED = ("log_density", "png_bytes", "bound_share", "target_met", "finite")
SHOWN = 12  # latents in the figure, at most


def measure(arrays: Mapping[str, np.ndarray]) -> Moments:
    """Compute moments over the latents of each quantity in `MEASURED`.

    Args:
        arrays: (dials, n) of each quantity.

    Returns:
        Moments of shape (len(MEASURED), dials).
    """
    return moments(np.stack([np.asarray(arrays[name], np.float64) for name in MEASURED]))


def summarize(
    chosen: Model, dials: np.ndarray, by_target: bool, measured: Moments
) -> list[dict[str, Any]]:
    """Make the rows of the summary, one for each dial; warn if a sample is not finite.

    Args:
        chosen: the model.
        dials: (dials,) values of q, or target log-densities in nats.
        by_target: whether `dials` are targets.
        measured: from `measure`.
    """
    mean = dict(zip(MEASURED, measured.mean, strict=True))
    if (mean["finite"] < 1).any():
        console.print("[yellow]some samples are not finite: see finite in the npz files[/yellow]")
    deviation = measured.deviation
    rows = []
    for i, dial in enumerate(dials):
        log_density = mean["log_density"][i]
        row = {
            "target_log_density" if by_target else "q": round(float(dial), 6),
            "log_density_mean": float(log_density),
            "log_density_std": None if deviation is None else float(deviation[0, i]),
            "png_bytes": float(mean["png_bytes"][i]),
            "bound_share": float(mean["bound_share"][i]),
        }
        if not chosen.meta.latent:  # the elements of a latent have no levels to count
            bits = bits_per_dim(log_density, chosen.size, chosen.meta.data_range)
            row["bits_per_dim"] = float(bits)
        if by_target:
            row["target_met"] = float(mean["target_met"][i])
        rows.append(row)
    return rows


def shown_levels(chosen: Model, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return uint8 levels of the first latents of stored samples, (dials, n, H, W, channels)."""
    if chosen.meta.latent:
        return arrays["pixels"][:, :SHOWN]
    return to_levels(chosen, arrays["x"][:, :SHOWN])


def write_figure(file: Path, chosen: Model, summary: dict[str, Any], levels: np.ndarray) -> None:
    """Write a figure of the first latents in `levels`, with a row for each dial."""
    name = "target" if "target_log_density" in summary["rows"][0] else "q"
    labels = [
        f"{name} = {row.get('q', row.get('target_log_density')):g}\n"
        f"{row['log_density_mean']:,.0f} nats\n{row['png_bytes']:.0f} B as PNG"
        for row in summary["rows"]
    ]
    image_grid(
        levels[:, :SHOWN],
        labels,
        title="The same latents at rising log-density: detail above, smoothness below",
        caption=f"{chosen.name}; mean {density_title(summary)}",
    ).savefig(file)


def show_table(summary: dict[str, Any]) -> None:
    """Print the rows of the summary on standard output."""
    by_target = "target_log_density" in summary["rows"][0]

    def cell(row, name, form):
        return "" if row[name] is None else form.format(row[name])

    # key in a row, header, format
    columns = [
        ("target_log_density", "target", "{:g}") if by_target else ("q", "q", "{:g}"),
        ("log_density_mean", "log-density, nats", "{:,.1f}"),
        ("log_density_std", "spread", "{:,.1f}"),
        ("bits_per_dim", "bits/dim", "{:.3f}"),
        ("png_bytes", "PNG bytes", "{:,.0f}"),
        ("bound_share", "at the bound", "{:.0%}"),
        ("target_met", "met", "{:.0%}"),
    ]
    columns = [column for column in columns if column[0] in summary["rows"][0]]
    table(
        f"{summary['model']}: {density_title(summary)}, undenoised",
        [header for _, header, _ in columns],
        [[cell(row, name, form) for name, _, form in columns] for row in summary["rows"]],
    )
