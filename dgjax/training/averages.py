"""Snapshots of a run's moving averages, and an average of any width made of them.

One file a step, `STEP.npz`, with every width's weights in float16. Between the stored widths the
coefficients have a norm of about 1, so the rounding is that of a model exported in float16;
outside them it grows (5 times at width 0.03 of stored 0.05 and 0.1).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, PyTree

from dgjax.checkpoints.arrays import from_named, to_named
from dgjax.files import replace_file
from dgjax.training import ema

__all__ = ["Recipe", "mix", "recipe", "snapshot_steps", "store", "stored_steps"]

# A profile ends with a jump, which only a snapshot of that very step has: between two of 32 the
# error is 10 to 40 %, at them below 2 % from width 0.03 to 0.2 of stored 0.05 and 0.1.
LIMIT = 0.1


class Recipe(NamedTuple):
    """How an average is made of stored ones.

    Attributes:
        step: of the average.
        steps: (n,) steps of the snapshots.
        coefficients: (n, widths) of every stored average.
        error: norm of the difference between the profiles over the norm of the asked one.
    """

    step: int
    steps: list[int]
    coefficients: np.ndarray
    error: float


def snapshot_steps(steps: int, count: int) -> set[int]:
    """At most `count` steps, evenly through a run of `steps`; the last is the run's last."""
    return {-(-steps * i // count) for i in range(1, count + 1)}


def store(folder: Path, step: int, averages: Sequence[PyTree[Array]]) -> None:
    """Write the averages after `step`, one tree for each width; whole or not at all.

    Raises:
        ValueError: if they cannot be written.
    """
    with np.errstate(over="ignore"):  # refused when read: training need not stop for it
        arrays = {
            f"{i}.{name}": np.asarray(value).astype(np.float16)
            for i, average in enumerate(averages)
            for name, value in to_named(average).items()
        }
    replace_file(folder / f"{step}.npz", partial(np.savez, **arrays))  # type: ignore[arg-type]


def stored_steps(folder: Path) -> list[int]:
    """Steps of the snapshots in `folder`, in order."""
    return sorted(int(f.stem) for f in folder.glob("*.npz") if f.stem.isdigit())


def recipe(folder: Path, widths: Sequence[float], width: float, step: int | None = None) -> Recipe:
    """The combination of the snapshots in `folder` for an average of `width` after `step`.

    Args:
        folder: of the snapshots.
        widths: that they hold.
        width: asked for.
        step: asked for; the last stored unless given.

    Raises:
        ValueError: if there is no snapshot, the width or the step is out of range, or the nearest
            combination is further than 10 % from what was asked, as it is between stored steps.
    """
    steps = stored_steps(folder)
    if not steps:
        raise ValueError(f"{folder} holds no averages yet; train on until the first are kept")
    step = steps[-1] if step is None else step
    gammas = np.array([ema.exponent(w) for w in widths])
    coefficients, error = ema.combine(
        np.repeat(steps, len(widths)), np.tile(gammas, len(steps)), step, ema.exponent(width)
    )
    if error > LIMIT:
        near = min(steps, key=lambda stored: abs(stored - step))
        raise ValueError(
            f"ema: width {width} at step {step} cannot be made of the {len(steps)} stored averages "
            f"of width {', '.join(map(str, widths))}: the profile would be off by {error:.0%}. Ask "
            f"for a stored step (the nearest is {near}) and a width nearer to these, or train with "
            "more ema_snapshots"
        )
    return Recipe(step, steps, coefficients.reshape(len(steps), len(widths)), error)


def mix(folder: Path, chosen: Recipe, like: PyTree[Array]) -> PyTree[Array]:
    """The average that `chosen` describes, summed in float64, with structure and dtype of `like`.

    Raises:
        ValueError: if a snapshot is damaged, not finite or of another network.
    """
    total: dict[str, np.ndarray] = {}
    for step, row in zip(chosen.steps, chosen.coefficients, strict=True):
        file = folder / f"{step}.npz"
        try:
            with np.load(file) as arrays:
                named = {name: arrays[name] for name in arrays.files}
        except Exception as error:  # NumPy and zipfile raise a handful of kinds on damaged files
            raise ValueError(
                f"{file} cannot be read ({error}); copy the run again, or delete the file and "
                "do without it"
            ) from error
        for name, value in named.items():
            place, _, leaf = name.partition(".")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} in {file} is not finite in float16; delete the file")
            total[leaf] = total.get(leaf, 0) + row[int(place)] * value.astype(np.float64)
    return from_named(like, total, f"the averages in {folder}")
