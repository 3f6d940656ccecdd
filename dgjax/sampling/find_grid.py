"""Find a time grid that is fine enough, by the error that the solver states."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.model.field import Field
from dgjax.sampling.likelihood import Likelihood
from dgjax.sampling.results import Sampled
from dgjax.sampling.sample import sample
from dgjax.sampling.time_grids import grid_logsnr
from dgjax.typing import Key, as_float

__all__ = ["FoundGrid", "find_grid"]


class FoundGrid(NamedTuple):
    """A time grid that meets a tolerance.

    Attributes:
        grid: (steps + 1,) times, made by `make_grid`.
        error: largest `info.solver_error` of the solves on it, in nats.
    """

    grid: Float[Array, " n+1"]
    error: float

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.grid.shape[0] - 1


def find_grid(
    model: Field,
    xs: Float[Array, "m ..."] | tuple[Any, ...],
    tolerance: float,
    *,
    key: Key,
    run: Callable[..., Sampled | Likelihood] = sample,
    make_grid: Callable[[Field, int], Array] = grid_logsnr,
    fewest: int = 8,
    most: int = 512,
    **options: Any,
) -> FoundGrid:
    """Double the number of steps until the stated error of the solver is below a tolerance.

    Each number of steps is compiled and solved once, for a few latents that stand for all others.
    The error counts the solver alone: the error of the probes is `info.standard_error`, and that
    of a learned score is `inconsistency`. Not for use under `jit`.

    Args:
        model: the field.
        xs: (m, *shape) latents at t_max, or samples at t_min with `run=likelihood`. A tuple has
            them first, and then what `run` takes between them and the grid, such as a condition
            for each: pytrees whose leaves have a leading axis of length m.
        tolerance: largest `info.solver_error` allowed, in nats.
        key: for probes and noise.
        run: `sample`, `likelihood` or a function of the same signature. The arrays of a
            `jax.tree_util.Partial` are arguments of the compiled program, not constants in it.
        make_grid: `make_grid(model, steps)` returns the grid of so many steps; `grid_from_data`
            suits `likelihood`.
        fewest: number of steps to begin with.
        most: number of steps not to exceed.
        **options: passed on to `run` (guides, divergence, solver, ...).

    Returns:
        `FoundGrid`.

    Raises:
        ValueError: if the tolerance is not positive, the solver does not state its error, or `most`
            steps do not meet the tolerance.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be a positive number of nats, got {tolerance}")
    if not 1 <= fewest <= most:
        raise ValueError(f"1 <= fewest <= most is needed, got {fewest} and {most}")
    first, *others = xs if isinstance(xs, tuple) else (xs,)
    starts = (as_float(first), *others)
    keys = jax.random.split(key, starts[0].shape[0])

    if not isinstance(run, jax.tree_util.Partial):
        run = jax.tree_util.Partial(run)

    @jax.jit
    def errors(run, model, grid, starts, keys):
        one = lambda start, key: run(model, *start, grid, key=key, **options).info.solver_error
        return jax.vmap(one)(starts, keys)

    steps = fewest
    while True:
        grid = make_grid(model, steps)
        error = float(jnp.max(errors(run, model, grid, starts, keys)))
        if error <= tolerance:
            return FoundGrid(grid, error)
        if error == float("inf"):
            raise ValueError(
                "this solver does not state its error: use Multistep, LevelSetEuler, RK4 or Dopri5"
            )
        if 2 * steps > most:
            raise ValueError(
                f"{steps} steps have a stated error of {error:.3g} nats, above {tolerance:g}: "
                "raise most or the tolerance"
            )
        steps *= 2
