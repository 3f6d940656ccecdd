"""Checks of arguments, shared by all that solves or integrates along a trajectory.

Shapes and dtypes are always checked. Values are checked where they are known: under `jax.jit` and
other transforms an argument is a tracer, and its values are then not looked at.
"""

import diffrax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dgjax.guidance.noise import ItoNoise, LevelSetNoise
from dgjax.model.field import Field
from dgjax.sampling.solvers import Controller, LevelSetEuler, Multistep, Solver
from dgjax.typing import concrete

__all__ = [
    "check_grid",
    "check_in_range",
    "check_latent",
    "check_monotone",
    "check_points",
    "check_prior_time",
    "check_sample",
    "check_solver",
    "check_trajectory_shape",
]


def check_sample(x: Array, name: str = "x") -> None:
    """Raise a ValueError unless `x` is floating and finite.

    Args:
        x: an array of any shape.
        name: what the message calls it.

    Raises:
        ValueError: if the dtype is not floating, or an entry is NaN or infinite.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating, got {x.dtype}; convert and scale it first")
    values = concrete(x)
    if values is not None and not np.isfinite(values).all():
        raise ValueError(
            f"{name} has NaN or infinite entries, which spread to every result; leave them out"
        )


def check_in_range(model: Field, times: Array, name: str) -> None:
    """Raise a ValueError if a time lies outside [t_min, t_max] of the model.

    Args:
        model: the field.
        times: one time, or an array of times.
        name: what the message calls them.

    Raises:
        ValueError: if a time is outside of the range by more than rounding.
    """
    values, low, high = concrete(times), concrete(model.t_min), concrete(model.t_max)
    if values is None or low is None or high is None:
        return
    slack = 1e-6 * (high - low)
    if not ((values >= low - slack) & (values <= high + slack)).all():
        raise ValueError(
            f"{name} runs from {values.max():g} to {values.min():g}, outside the model's own range "
            f"{high:g} to {low:g}; build grids with grid_logsnr(model, steps), cut the trajectory, "
            "or repath the model"
        )


def _check_steps(grid: Array) -> None:
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(f"grid must be (steps + 1,) with at least one step, got {grid.shape}")


def _directions(times: np.ndarray) -> tuple[bool, bool]:
    """Whether `times` strictly increase, and whether they strictly decrease."""
    steps = np.diff(times)
    return bool((steps > 0).all()), bool((steps < 0).all())


def check_monotone(times: Array, name: str, otherwise: str) -> None:
    """Raise a ValueError unless `times` strictly increase or strictly decrease.

    Args:
        times: (n + 1,) times.
        name: what the message calls them.
        otherwise: the fix that the message states.

    Raises:
        ValueError: if they do neither.
    """
    values = concrete(times)
    if values is not None and not any(_directions(values)):
        raise ValueError(f"{name} must be strictly monotone: {otherwise}")


def check_grid(model: Field, grid: Array) -> None:
    """Raise a ValueError unless `grid` decreases inside the model's range.

    Args:
        model: the field.
        grid: (steps + 1,) times of a sampler.

    Raises:
        ValueError: if the shape is another, the times do not decrease, or one is out of range.
    """
    _check_steps(grid)
    times = concrete(grid)
    if times is not None and not _directions(times)[1]:
        raise ValueError("a sampling grid decreases, from noise (t_max) to data (t_min)")
    check_in_range(model, grid, "grid")


def check_prior_time(model: Field, time: Array, name: str) -> None:
    """Raise a ValueError unless `time`, where a log-density is needed, is t_max.

    The prior is the model's density at t_max and at no other time.

    Args:
        model: the field.
        time: the first time of a grid or of a trajectory.
        name: what the message calls the array that it comes from.

    Raises:
        ValueError: if it is another.
    """
    start, high = concrete(time), concrete(model.t_max)
    if start is None or high is None or np.isclose(start, high, rtol=1e-5):
        return
    raise ValueError(
        f"the prior is known at t_max = {high:g} only and {name} starts at {start:g}: start at "
        "t_max, as grid_logsnr(model, steps) does, or pass the log-density there as log_density"
    )


def check_latent(model: Field, x: Array, grid: Array, log_density: object | None) -> None:
    """Raise a ValueError unless a solve can start from `x` on `grid`.

    Args:
        model: the field.
        x: one latent, or several.
        grid: (steps + 1,) times of a sampler.
        log_density: of `x`; None to take the prior, which is known at t_max only.

    Raises:
        ValueError: as `check_sample`, `check_grid` and `check_prior_time`.
    """
    check_grid(model, grid)
    check_sample(x)
    if log_density is None:
        check_prior_time(model, grid[0], "grid")


def check_trajectory_shape(ts: Array, xs: Array, least: int = 2) -> None:
    """Raise a ValueError unless `ts` and `xs` are the times and points of one trajectory.

    Args:
        ts: (n+1,) times.
        xs: (n+1, *shape) points.
        least: the smallest number of points that serves.

    Raises:
        ValueError: if shapes disagree or the points are too few.
    """
    if ts.ndim != 1 or xs.ndim < 1 or xs.shape[0] != ts.shape[0]:
        raise ValueError(f"ts {ts.shape} and xs {xs.shape} must be (n+1,) and (n+1, *shape)")
    if ts.shape[0] < least:
        raise ValueError(f"ts (n+1,) has {ts.shape[0]} points: at least {least} points are needed")


def check_points(model: Field, ts: Array, xs: Array, least: int = 2) -> None:
    """Raise a ValueError unless a log-density can be measured along these points.

    Args:
        model: the field.
        ts: (n+1,) times, in any order.
        xs: (n+1, *shape) points.
        least: the smallest number of points that serves.

    Raises:
        ValueError: if shapes disagree, the points are too few, not floating or not finite, or a
            time is outside the model's range.
    """
    check_trajectory_shape(ts, xs, least)
    check_sample(xs, "xs")
    check_in_range(model, ts, "ts")


def check_solver(
    grid: Array, noise: object | None, solver: Solver, controller: Controller | None
) -> None:
    """Raise a ValueError unless solver, noise, controller and grid go together.

    Args:
        grid: (steps + 1,) times, in either direction.
        noise: the stochastic term, or None.
        solver: the diffrax solver.
        controller: the step-size controller, or None for the steps of the grid.

    Raises:
        ValueError: if they do not, with a combination that does.
    """
    _check_steps(grid)
    check_monotone(grid, "grid", "sort it and drop repeated times")
    name = type(solver).__name__
    one_evaluation = isinstance(solver, Multistep | LevelSetEuler)
    if not one_evaluation and not isinstance(solver, diffrax.AbstractERK | diffrax.Euler):
        raise ValueError(
            f"{name} is not supported: use Multistep, LevelSetEuler, Euler or an "
            "explicit Runge-Kutta method (Heun, RK4, Bosh3, Tsit5, Dopri5, ...)"
        )
    if one_evaluation and controller is not None:
        raise ValueError(
            f"{name} needs a fixed grid: leave out the step-size controller, or use Tsit5()"
        )
    if isinstance(solver, LevelSetEuler) and not isinstance(noise, LevelSetNoise):
        given = "there is none" if noise is None else f"not for {type(noise).__name__}"
        raise ValueError(
            f"LevelSetEuler is for noise along the level set, and {given}: pass "
            "noise=level_set_noise(), or use Multistep() for ODEs and RK4() for other noise"
        )
    if noise is not None:
        _check_noise(noise, solver, controller)


def _check_noise(noise: object, solver: Solver, controller: Controller | None) -> None:
    if isinstance(solver, Multistep):
        raise ValueError(
            "Multistep is for ODEs, without noise: use LevelSetEuler() for level_set_noise(), "
            "RK4() for other noise"
        )
    if controller is not None:
        raise ValueError("noise needs a fixed grid: leave out the step-size controller")
    ito, euler = isinstance(noise, ItoNoise), isinstance(solver, diffrax.Euler)
    kind = type(noise).__name__
    if ito and not euler:
        raise ValueError(
            f"{kind} is an Ito step and needs solver=Euler(), not {type(solver).__name__}"
        )
    if euler and not ito:
        raise ValueError(
            f"{kind} is meant in the Stratonovich sense and Euler converges to "
            "Ito: use Heun(), RK4() or another Runge-Kutta method"
        )
