"""Summary, figure and table of the samples that `dgjax sample` draws."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgjax.checkpoints.opened import Model, density_title
from dgjax.cli.options import table
from dgjax.cli.stated_errors import error_cell, error_columns, error_entries
from dgjax.devices.progress import say
from dgjax.evaluation.moments import Moments, moments
from dgjax.pictures.grid import image_grid, save_figure
from dgjax.pictures.latents import to_levels
from dgjax.pictures.png import encode_png
from dgjax.pictures.quantization import bits_per_dim
from dgjax.sampling.results import Sampled

__all__ = [
    "MEASURED",
    "measure",
    "measured_values",
    "sample_arrays",
    "show_table",
    "shown_levels",
    "summarize",
    "write_figure",
]

ERRORS = ("standard_error", "solver_error")
MEASURED = ("log_density", "png_bytes", "bound_share", "target_met", "finite", *ERRORS)
LEGEND = (
    "+-: stated errors of one sample's log p; spread: standard deviation between samples; bits per "
    "dim: of 256 levels; at bound: share of the log-SNR range on which the guide reached its "
    "bound; undenoised: of x as it is at t_min, without a last denoising step"
)
SHOWN = 12  # latents in the figure, at most


def sample_arrays(
    chosen: Model, dials: np.ndarray, by_target: bool, found: Sampled, levels: np.ndarray | None
) -> dict[str, Any]:
    """Make the arrays of samples.npz or of a shard; most are (dials, n, ...).

    Args:
        chosen: the model.
        dials: (dials,) values of q, or target log-densities in nats.
        by_target: whether `dials` are targets.
        found: the samples, (dials, n, ...).
        levels: their uint8 levels; None if they are no pictures.
    """
    blank = np.full(len(dials), np.nan, np.float32)
    unknown = np.full(found.log_density.shape, np.nan, np.float32)
    pictures = {}
    if levels is not None:
        sizes = [[len(encode_png(image)) for image in row] for row in levels]
        pictures["png_bytes"] = np.asarray(sizes, np.int32)
        if chosen.meta.latent:
            pictures["pixels"] = levels
    return {
        "x": found.x,
        "q": blank if by_target else dials,
        "target_log_density": dials if by_target else blank,
        "log_density": found.log_density,
        "standard_error": found.info.standard_error,
        "solver_error": found.info.solver_error,
        "bound_share": found.info.bound_share,
        "target_met": found.info.target_met if by_target else unknown,
        "finite": found.info.finite,
        "fault": found.info.fault,
        **pictures,
        "t_min": chosen.facts()["t_min"],
    }


def measured_values(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the quantities in `MEASURED` as one array (len(MEASURED), dials, n).

    Errors that are unknown are NaN. So is what `arrays` lacks: earlier versions of dgjax did not
    write the errors, and samples that are no pictures have no size as PNG.
    """
    unknown = np.full(arrays["log_density"].shape, np.nan)

    def values(name):
        if name not in (*ERRORS, "png_bytes"):
            return np.asarray(arrays[name], np.float64)
        found = np.asarray(arrays.get(name, unknown), np.float64)
        return np.where(np.isfinite(found), found, np.nan)

    return np.stack([values(name) for name in MEASURED])


def measure(arrays: Mapping[str, np.ndarray]) -> Moments:
    """Compute moments over the latents of each quantity in `MEASURED`.

    Args:
        arrays: (dials, n) of each quantity.

    Returns:
        Moments of shape (len(MEASURED), dials).
    """
    return moments(measured_values(arrays))


def summarize(
    chosen: Model, dials: np.ndarray, by_target: bool, measured: Moments
) -> list[dict[str, Any]]:
    """Make the rows of the summary, one for each dial; warn if a sample is not finite.

    The errors in a row are those of one sample, in the mean over the samples.

    Args:
        chosen: the model.
        dials: (dials,) values of q, or target log-densities in nats.
        by_target: whether `dials` are targets.
        measured: from `measure`.
    """
    mean = dict(zip(MEASURED, measured.mean, strict=True))
    if (mean["finite"] < 1).any():
        say("some samples are not finite: see finite in the npz files", warning=True)
    deviation = measured.deviation
    rows = []
    for i, dial in enumerate(dials):
        log_density = mean["log_density"][i]
        row = {
            "target_log_density" if by_target else "q": round(float(dial), 6),
            "log_density_mean": float(log_density),
            **error_entries(*(mean[name][i] for name in ERRORS)),
            "log_density_std": None if deviation is None else float(deviation[0, i]),
            "bound_share": float(mean["bound_share"][i]),
        }
        if chosen.has_pictures:
            row["png_bytes"] = float(mean["png_bytes"][i])
        if chosen.has_levels:
            bits = bits_per_dim(log_density, chosen.size, chosen.meta.data_range)
            row["bits_per_dim"] = float(bits)
        if by_target:
            row["target_met"] = float(mean["target_met"][i])
        rows.append(row)
    return rows


def shown_levels(chosen: Model, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return uint8 levels (dials, n, H, W, channels) of the first latents of stored samples.

    None if the samples are no pictures.
    """
    if not chosen.has_pictures:
        return None
    if chosen.meta.latent:
        return arrays["pixels"][:, :SHOWN]
    return to_levels(chosen, arrays["x"][:, :SHOWN])


def write_figure(
    file: Path, chosen: Model, summary: dict[str, Any], levels: np.ndarray, complete: str
) -> None:
    """Write a figure of the first latents in `levels`, with a row for each dial.

    Raises:
        ValueError: if it cannot be drawn; the message says that `complete` are written.
    """
    name = "target" if "target_log_density" in summary["rows"][0] else "q"
    labels = [
        f"{name} = {row.get('q', row.get('target_log_density')):g}\n"
        f"{row['log_density_mean']:,.0f} nats\n{row['png_bytes']:.0f} B as PNG"
        for row in summary["rows"]
    ]
    figure = image_grid(
        levels[:, :SHOWN],
        labels,
        title="The same latents at rising log-density: detail above, smoothness below",
        caption=f"{chosen.name}; mean {density_title(summary)}",
    )
    save_figure(file, figure, complete)


def show_table(summary: dict[str, Any]) -> None:
    """Print the rows of the summary on standard output."""
    by_target = "target_log_density" in summary["rows"][0]

    def cell(row, name, form):
        if form is None:
            return error_cell(row[name])
        return "" if row[name] is None else form.format(row[name])

    # key in a row, header, format; None for errors
    columns = [
        ("target_log_density", "target", "{:g}") if by_target else ("q", "q", "{:g}"),
        ("log_density_mean", "log p, nats", "{:,.1f}"),
        *((*column, None) for column in error_columns(summary.get("divergence", "probes"))),
        ("log_density_std", "spread", "{:,.1f}"),
        ("bits_per_dim", "bits per dim", "{:.3f}"),
        ("png_bytes", "PNG bytes", "{:,.0f}"),
        ("bound_share", "at bound", "{:.0%}"),
        ("target_met", "met", "{:.0%}"),
    ]
    columns = [column for column in columns if column[0] in summary["rows"][0]]
    table(
        f"{summary['model']}: {density_title(summary)}, undenoised",
        [header for _, header, _ in columns],
        [[cell(row, name, form) for name, _, form in columns] for row in summary["rows"]],
        LEGEND,
    )
