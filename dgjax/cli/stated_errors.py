"""Show the errors of log-densities that a solve states, and say when the grid is too coarse."""

from typing import Any

import numpy as np

from dgjax.devices.progress import say

__all__ = ["error_cell", "error_columns", "error_entries", "known", "note_coarse"]

# key in a row of a summary, header in a table
ERROR_COLUMNS = (
    ("log_density_standard_error", "+- probes"),
    ("log_density_solver_error", "+- solver"),
)
LARGE = 0.01  # nats per dimension; this moves bits per dimension in the second decimal


def error_columns(divergence: str) -> tuple[tuple[str, str], ...]:
    """Return key in a row and header in a table of each error.

    Args:
        divergence: the option --divergence.
    """
    if divergence == "probes":
        return ERROR_COLUMNS
    (key, _), *others = ERROR_COLUMNS
    return (key, "+- head"), *others


def known(error: Any) -> float | None:
    """Return an error as a number; None if it is NaN or infinite, which means unknown."""
    return float(error) if np.isfinite(error) else None


def error_entries(standard_error: Any, solver_error: Any) -> dict[str, float | None]:
    """Make the entries of a summary's row for the errors of one log-density.

    Args:
        standard_error: from the probes, in nats; infinite or NaN if unknown.
        solver_error: from the grid, in nats; infinite or NaN if unknown.
    """
    errors = known(standard_error), known(solver_error)
    return {key: error for (key, _), error in zip(ERROR_COLUMNS, errors, strict=True)}


def error_cell(error: float | None) -> str:
    """Write an error with two digits, or as unknown."""
    if error is None:
        return "unknown"
    return f"{error:.2g}" if error < 99.5 else f"{error:,.0f}"


def note_coarse(rows: list[dict[str, Any]], size: int, steps: int) -> None:
    """Note on standard error if the solver's error is large for what the rows show.

    It is large above `LARGE` nats per dimension, and above the standard deviation between samples
    where a row has one that was not asked for: then the difference between two samples is that of
    their errors. An unknown error is not judged.

    Args:
        rows: of a summary, with the entries of `error_entries`.
        size: number of elements of a sample.
        steps: of the solves.
    """
    worst, meaning = 0.0, ""
    for row in rows:
        error = row["log_density_solver_error"]
        spread = None if "target_log_density" in row else row.get("log_density_std")
        if error is None or error <= worst:
            continue
        if error > LARGE * size:
            worst, meaning = error, f"{error / size:.2g} nats per dimension"
        elif spread is not None and error > spread:
            worst, meaning = error, f"more than the {spread:.2g} nats between samples"
    if meaning:
        say(
            f"the solver's error is about {error_cell(worst)} nats, {meaning}: take more steps, "
            f"such as --steps {2 * steps}",
            warning=True,
        )
