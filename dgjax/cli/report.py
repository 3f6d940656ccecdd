"""What `dgjax sample` says of its samples, however many: means and spreads, a picture, a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dgjax.checkpoints.opened import Model, density_title
from dgjax.cli.options import table
from dgjax.devices.progress import console
from dgjax.pictures.grid import image_grid
from dgjax.pictures.latents import LEVELS, to_levels
from dgjax.pictures.quantization import bits_per_dim

__all__ = ["MEASURED", "Moments", "measure", "rows", "show_table", "write_picture"]

MEASURED = ("log_density", "png_bytes", "bound_share", "target_met", "finite")
PICTURED = 12  # columns at most


class Moments(NamedTuple):
    """Mean and sum of squared deviations of `number` values, for any number of quantities at once.

    What two sets have together follows from what each has (Chan, Golub and LeVeque), without the
    cancellation that sums of squares suffer.
    """

    number: int
    mean: np.ndarray
    squares: np.ndarray

    def join(self, other: "Moments") -> "Moments":
        number = self.number + other.number
        apart, share = other.mean - self.mean, other.number / number
        squares = self.squares + other.squares + apart**2 * (self.number * share)
        return Moments(number, self.mean + apart * share, squares)


def measure(arrays: Mapping[str, np.ndarray]) -> Moments:
    """Of each quantity in `MEASURED`, along the latents: (len(MEASURED), dials)."""
    values = np.stack([np.asarray(arrays[name], np.float64) for name in MEASURED])
    mean = values.mean(-1)
    return Moments(values.shape[-1], mean, ((values - mean[..., None]) ** 2).sum(-1))


def rows(
    chosen: Model, dials: np.ndarray, by_target: bool, moments: Moments
) -> list[dict[str, Any]]:
    """The summary's rows, one for each dial; a note on standard error if anything is not finite."""
    mean = dict(zip(MEASURED, moments.mean, strict=True))
    if (mean["finite"] < 1).any():
        console.print("[yellow]some samples are not finite: see finite in the npz files[/yellow]")
    found = []
    for i, dial in enumerate(dials):
        value = mean["log_density"][i]
        spread = None
        if moments.number > 1:
            spread = float(np.sqrt(moments.squares[0, i] / (moments.number - 1)))
        row = {
            "target_log_density" if by_target else "q": round(float(dial), 6),
            "log_density_mean": float(value),
            "log_density_std": spread,
            "png_bytes": float(mean["png_bytes"][i]),
            "bound_share": float(mean["bound_share"][i]),
        }
        if not chosen.meta.latent:  # of a latent's elements there are no levels to count
            bits = bits_per_dim(value, chosen.size, chosen.meta.data_range)
            row["bits_per_dim"] = float(bits)
        if by_target:
            row["target_met"] = float(mean["target_met"][i])
        found.append(row)
    return found


def write_picture(
    file: Path, chosen: Model, summary: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """The first latents of `arrays`, (dials, n, ...) each, a row for each dial."""
    if chosen.meta.latent:
        pixels = arrays["pixels"][:, :PICTURED]
    else:
        pixels = to_levels(chosen, arrays["x"][:, :PICTURED])
    name = "target" if "target_log_density" in summary["rows"][0] else "q"
    labels = [
        f"{name} = {row.get('q', row.get('target_log_density')):g}\n"
        f"{row['log_density_mean']:,.0f} nats\n{row['png_bytes']:.0f} B as PNG"
        for row in summary["rows"]
    ]
    image_grid(
        pixels,
        labels,
        data_range=LEVELS,
        title="The same latents at rising log-density: detail above, smoothness below",
        caption=f"{chosen.name}; mean {density_title(summary)}",
    ).savefig(file)


def show_table(summary: dict[str, Any]) -> None:
    """The summary's rows on standard output."""
    by_target = "target_log_density" in summary["rows"][0]

    def cell(row, name, form):
        return "" if row[name] is None else form.format(row[name])

    # name in the summary's rows, header, form
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
