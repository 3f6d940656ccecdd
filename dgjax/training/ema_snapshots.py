"""Snapshots of a run's moving averages, and post-hoc EMA from them (EDM2, arXiv 2312.02696).

A snapshot is one file `STEP.npz` with the averages of every width in float16. Between the stored
widths the coefficients of the reconstruction have a norm of about 1, so rounding is that of a model
stored in float16. Outside of them it is larger: 5 times at width 0.03 with 0.05 and 0.1 stored.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, PyTree

from dgjax.checkpoints.arrays import from_named, to_named
from dgjax.files import replace_file
from dgjax.training import ema

__all__ = [
    "MAX_ERROR",
    "Reconstruction",
    "plan_reconstruction",
    "reconstruct",
    "snapshot_folder",
    "snapshot_steps",
    "stored_steps",
    "write_snapshot",
]

# Largest relative error of a profile. With 32 snapshots of widths 0.05 and 0.1 the error is below
# 2 % at a stored step, for widths from 0.03 to 0.2. It is 10 to 40 % between stored steps: a
# profile ends with a jump at its step, and only a snapshot of that step has the same jump.
MAX_ERROR = 0.1


class Reconstruction(NamedTuple):
    """Coefficients that combine snapshots into an average that was not stored.

    Attributes:
        step: step of the reconstructed average.
        steps: steps of the snapshots, (n,).
        coefficients: one for each snapshot and width, (n, widths).
        error: norm of the difference between the reconstructed and the requested profile, relative
            to the norm of the requested profile.
    """

    step: int
    steps: list[int]
    coefficients: Float[np.ndarray, "n widths"]
    error: float


def snapshot_folder(run_dir: Path) -> Path:
    """Return the folder of a run's snapshots."""
    return run_dir / "averages"


def snapshot_steps(steps: int, count: int) -> set[int]:
    """Return at most `count` steps, evenly spaced over a run of `steps`; the last step is one."""
    return {-(-steps * i // count) for i in range(1, count + 1)}


def write_snapshot(folder: Path, step: int, averages: Sequence[PyTree[Array]]) -> None:
    """Write the snapshot of one step, atomically.

    Args:
        folder: of the snapshots; made if missing.
        step: number of steps taken.
        averages: the averaged network of each width.

    Raises:
        ValueError: if the file cannot be written.
    """
    with np.errstate(over="ignore"):  # infinities are refused by `reconstruct`; training goes on
        arrays = {
            f"{i}.{name}": np.asarray(value).astype(np.float16)
            for i, average in enumerate(averages)
            for name, value in to_named(average).items()
        }
    # mypy takes an unpacked dictionary for the Boolean argument `allow_pickle`.
    write = lambda stream: np.savez(stream, **arrays)  # type: ignore[arg-type]
    replace_file(folder / f"{step}.npz", write)


def stored_steps(folder: Path) -> list[int]:
    """Return the steps of the snapshots in `folder`, in increasing order."""
    return sorted(int(f.stem) for f in folder.glob("*.npz") if f.stem.isdigit())


def plan_reconstruction(
    folder: Path, widths: Sequence[float], width: float, step: int | None = None
) -> Reconstruction:
    """Find the combination of the snapshots in `folder` for an average of `width` after `step`.

    Args:
        folder: of the snapshots.
        widths: stored in every snapshot.
        width: requested width, relative to the length of training.
        step: requested step; the last stored step if None.

    Returns:
        The nearest combination, for `reconstruct`.

    Raises:
        ValueError: if there is no snapshot, the width or the step is out of range, or the error of
            the nearest combination is above 10 %, as it is between stored steps.
    """
    steps = stored_steps(folder)
    if not steps:
        raise ValueError(
            f"{folder} holds no averages yet; continue the run until its first snapshot"
        )
    step = steps[-1] if step is None else step
    gammas = np.array([ema.exponent(w) for w in widths])
    coefficients, error = ema.combine(
        np.repeat(steps, len(widths)), np.tile(gammas, len(steps)), step, ema.exponent(width)
    )
    if error > MAX_ERROR:
        near = min(steps, key=lambda stored: abs(stored - step))
        raise ValueError(
            f"ema: width {width} at step {step} cannot be reconstructed from the {len(steps)} "
            f"snapshots of widths {', '.join(map(str, widths))}: the relative error of the profile "
            f"would be {error:.0%}. Choose a stored step (the nearest is {near}) and a width "
            "nearer to the stored ones, or train with a larger ema_snapshots"
        )
    return Reconstruction(step, steps, coefficients.reshape(len(steps), len(widths)), error)


def reconstruct(folder: Path, plan: Reconstruction, like: PyTree[Array]) -> PyTree[Array]:
    """Return the average that `plan` describes, summed in float64.

    Args:
        folder: of the snapshots.
        plan: from `plan_reconstruction`.
        like: a network, or its shapes, with the structure, shapes and dtypes to return.

    Raises:
        ValueError: if a snapshot is damaged, not finite, or of another network.
    """
    total: dict[str, np.ndarray] = {}
    for step, row in zip(plan.steps, plan.coefficients, strict=True):
        file = folder / f"{step}.npz"
        try:
            with np.load(file) as arrays:
                named = {name: arrays[name] for name in arrays.files}
        except Exception as error:  # NumPy and zipfile raise many kinds of errors on damaged files
            raise ValueError(
                f"{file} cannot be read ({error}); copy the run again, or delete this file"
            ) from error
        for name, value in named.items():
            index, _, leaf = name.partition(".")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} in {file} is not finite in float16; delete this file")
            total[leaf] = total.get(leaf, 0) + row[int(index)] * value.astype(np.float64)
    return from_named(like, total, f"the averages in {folder}")
