"""`--steps auto`: find the number of solver steps by the error that the solver states."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import typer
from jaxtyping import Array

from dgjax.cli.options import MOST_STEPS
from dgjax.cli.stated_errors import error_cell
from dgjax.devices.progress import console, say
from dgjax.model.field import Field
from dgjax.sampling.find_grid import find_grid
from dgjax.sampling.likelihood import Likelihood
from dgjax.sampling.results import Sampled
from dgjax.sampling.time_grids import grid_logsnr
from dgjax.typing import Key

__all__ = [
    "AUTO",
    "STEPS_OPTION",
    "STEPS_OR_AUTO",
    "TOLERANCE",
    "TRIALS",
    "Steps",
    "find_steps",
    "set_tolerance",
]

AUTO: Literal["auto"] = "auto"
Steps: TypeAlias = int | Literal["auto"]
PER_DIMENSION = 0.001  # nats; of the default tolerance
TRIALS = 4  # samples at most that stand for all others


def _parse(text: str | int) -> Steps:
    if text == AUTO:
        return AUTO
    digits = str(text)
    if not digits.isdecimal() or len(digits) > 9 or not 1 <= int(digits) <= MOST_STEPS:
        raise typer.BadParameter(
            f"{text!r} is neither {AUTO} nor a whole number from 1 to {MOST_STEPS}"
        )
    return int(text)


STEPS_OPTION: dict[str, Any] = {
    "parser": _parse,
    "metavar": f"INTEGER|{AUTO}",
    "help": f"Solver steps, uniform in log-SNR; {AUTO}: as many as --tolerance needs.",
}
STEPS_OR_AUTO = Annotated[Any, typer.Option(**STEPS_OPTION)]  # a `Steps`; typer knows no unions
TOLERANCE = Annotated[
    float | None,
    typer.Option(
        help=f"With --steps {AUTO}: largest error of a log-density from the solver, in nats.",
        show_default=f"{PER_DIMENSION:g} per dimension",
    ),
]


def set_tolerance(steps: Steps, tolerance: float | None, size: int) -> float:
    """Check the option --tolerance and return its value in nats.

    Args:
        steps: the option --steps.
        tolerance: the option --tolerance; None for the default.
        size: number of elements of a sample.

    Raises:
        ValueError: if it is not positive, or given without `--steps auto`.
    """
    if tolerance is None:
        return PER_DIMENSION * size
    if steps != AUTO:
        raise ValueError(f"--tolerance needs --steps {AUTO}: add it, or leave --tolerance out")
    if not 0 < tolerance < np.inf:
        raise ValueError(f"--tolerance must be a positive number of nats, got {tolerance:g}")
    return tolerance


def find_steps(
    model: Field,
    xs: Any,
    tolerance: float,
    *,
    key: Key,
    run: Callable[..., Sampled | Likelihood],
    make_grid: Callable[[Field, int], Array] = grid_logsnr,
) -> int:
    """Return the number of steps that `find_grid` finds, and print it with its stated error.

    Args:
        model: the field.
        xs: (m, *shape) starts of the solves, or a tuple of them and of what `run` takes after them;
            as of `find_grid`.
        tolerance: largest error from the solver, in nats.
        key: for probes and noise.
        run: `run(model, x, grid, key=key)` solves from one start.
        make_grid: `make_grid(model, steps)` returns the grid of so many steps.

    Raises:
        ValueError: if no number of steps meets the tolerance, or the solver does not state its
            error.
    """
    try:
        with console.status("finding the number of steps") as status:

            def trying(model: Field, steps: int) -> Array:
                status.update(f"finding the number of steps: {steps}")
                return make_grid(model, steps)

            found = find_grid(model, xs, tolerance, key=key, run=run, make_grid=trying)
    except ValueError as error:
        what = str(error).partition(":")[0]
        raise ValueError(
            f"--steps {AUTO}: {what}; give a number of steps, a larger --tolerance or another "
            "--solver"
        ) from error
    say(
        f"{found.steps} steps: error from the solver {error_cell(found.error)} nats, "
        f"tolerance {error_cell(tolerance)}"
    )
    return found.steps
