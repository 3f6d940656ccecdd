"""Checks of arguments, shared by all that solves or integrates along a trajectory.

Shapes and dtypes are always checked and raise. Checks of numbers return a code of
`dgjax.model.faults`: they raise where the numbers are known, and where JAX is tracing them the
caller puts the code into its result.
"""

import diffrax
import jax.numpy as jnp
from jaxtyping import Array

from dgjax.guidance.noise import ItoNoise, LevelSetNoise
from dgjax.model.faults import Code, Fault, check, finite, first, numbers
from dgjax.model.field import Field
from dgjax.sampling.solvers import Controller, LevelSetEuler, Multistep, Solver
from dgjax.sampling.traced_numbers import check_model

__all__ = [
    "check_entries",
    "check_grid",
    "check_in_range",
    "check_latent",
    "check_monotone",
    "check_points",
    "check_prior_time",
    "check_sample",
    "check_shape",
    "check_solver",
    "check_trajectory_shape",
]


def check_sample(model: Field, x: Array, name: str = "x") -> Code:
    """Check that `x` is one sample of the model, floating and finite.

    Args:
        model: the field.
        x: an array of any shape.
        name: what the message calls it.

    Returns:
        The code of the check.

    Raises:
        ValueError: if the shape is not that of the model, the dtype is not floating, or an entry is
            NaN or infinite.
    """
    check_shape(model, x.shape, name)
    return check_entries(x, name)


def check_shape(model: Field, shape: tuple[int, ...], name: str) -> None:
    """Raise a ValueError unless `shape` is that of one sample of the model, if this is known.

    Args:
        model: the field.
        shape: of the array.
        name: what the message calls it.

    Raises:
        ValueError: if it is another.
    """
    if model.shape is not None and shape != model.shape:
        raise ValueError(
            f"{name} has shape {shape}, but one sample of this model has shape {model.shape}: pass "
            "one sample (jax.vmap maps over a batch)"
        )


def check_entries(x: Array, name: str) -> Code:
    """Check that an array is floating and finite.

    Args:
        x: an array of any shape.
        name: what the message calls it.

    Returns:
        The code of the check.

    Raises:
        ValueError: if the dtype is not floating, or an entry is NaN or infinite.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating, got {x.dtype}; convert and scale it first")
    (entries,) = numbers(x)
    message = f"{name} has NaN or infinite entries, which spread to every result; leave them out"
    return check(finite(entries).all(), Fault.NOT_FINITE, message)


def check_in_range(model: Field, times: Array, name: str) -> Code:
    """Check that times lie inside [t_min, t_max] of the model, except for rounding.

    Args:
        model: the field.
        times: one time, or an array of times.
        name: what the message calls them.

    Returns:
        The code of the check.

    Raises:
        ValueError: if a time is outside of the range.
    """
    times, low, high = numbers(times, model.t_min, model.t_max)
    slack = 1e-6 * (high - low)
    inside = ((times >= low - slack) & (times <= high + slack)).all()
    message = (
        f"{name} runs from {{start:g}} to {{stop:g}}, outside the model's own range "
        "{high:g} to {low:g}; build grids with grid_logsnr(model, steps), cut the trajectory, "
        "or repath the model"
    )
    shown = {"start": times.max(), "stop": times.min(), "low": low, "high": high}
    return check(inside, Fault.OUT_OF_RANGE, message, **shown)


def _check_steps(grid: Array) -> None:
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(f"grid must be (steps + 1,) with at least one step, got {grid.shape}")


def check_monotone(times: Array, name: str, otherwise: str) -> Code:
    """Check that `times` strictly increase or strictly decrease.

    Args:
        times: (n + 1,) times.
        name: what the message calls them.
        otherwise: the fix that the message states.

    Returns:
        The code of the check.

    Raises:
        ValueError: if they do neither.
    """
    (times,) = numbers(times)
    monotone = (times[1:] > times[:-1]).all() | (times[1:] < times[:-1]).all()
    return check(monotone, Fault.NOT_MONOTONE, f"{name} must be strictly monotone: {otherwise}")


def check_grid(model: Field, grid: Array) -> Code:
    """Check that `grid` decreases inside the model's range.

    Args:
        model: the field.
        grid: (steps + 1,) times of a sampler.

    Returns:
        The code of the check.

    Raises:
        ValueError: if the shape is another, the times do not decrease, or one is out of range.
    """
    _check_steps(grid)
    (times,) = numbers(grid)
    message = "a sampling grid decreases, from noise (t_max) to data (t_min)"
    return first(
        check((times[1:] < times[:-1]).all(), Fault.NOT_DECREASING, message),
        check_in_range(model, grid, "grid"),
    )


def check_prior_time(model: Field, time: Array, name: str) -> Code:
    """Check that `time`, where a log-density is needed, is t_max.

    The prior is the model's density at t_max and at no other time.

    Args:
        model: the field.
        time: the first time of a grid or of a trajectory.
        name: what the message calls the array that it comes from.

    Returns:
        The code of the check.

    Raises:
        ValueError: if it is another.
    """
    start, high = numbers(time, model.t_max)
    message = (
        f"the prior is known at t_max = {{high:g}} only and {name} starts at {{start:g}}: start at "
        "t_max, as grid_logsnr(model, steps) does, or pass the log-density there as log_density"
    )
    near = abs(start - high) <= 1e-8 + 1e-5 * abs(high)
    return check(near, Fault.NOT_AT_T_MAX, message, start=start, high=high)


def check_latent(model: Field, x: Array, grid: Array, log_density: object | None) -> Code:
    """Check that a solve can start from `x` on `grid`.

    Args:
        model: the field.
        x: one latent.
        grid: (steps + 1,) times of a sampler.
        log_density: of `x`; None to take the prior, which is known at t_max only.

    Returns:
        The code of the check.

    Raises:
        ValueError: as `check_sample`, `check_grid` and `check_prior_time`.
    """
    fault = first(check_model(model), check_grid(model, grid), check_sample(model, x))
    if log_density is not None:
        return fault
    return first(fault, check_prior_time(model, grid[0], "grid"))


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


def check_points(model: Field, ts: Array, xs: Array, least: int = 2) -> Code:
    """Check that a log-density can be measured along these points.

    Args:
        model: the field.
        ts: (n+1,) times, in any order.
        xs: (n+1, *shape) points.
        least: the smallest number of points that serves.

    Returns:
        The code of the check.

    Raises:
        ValueError: if shapes disagree, the points are too few, not floating or not finite, or a
            time is outside the model's range.
    """
    check_trajectory_shape(ts, xs, least)
    check_shape(model, xs.shape[1:], "each of xs")
    return first(check_entries(xs, "xs"), check_in_range(model, ts, "ts"))


def check_solver(
    grid: Array, noise: object | None, solver: Solver, controller: Controller | None
) -> Code:
    """Check that solver, noise, controller and grid go together.

    Args:
        grid: (steps + 1,) times, in either direction.
        noise: the stochastic term, or None.
        solver: the diffrax solver.
        controller: the step-size controller, or None for the steps of the grid.

    Returns:
        The code of the check of the grid.

    Raises:
        ValueError: if they do not, with a combination that does.
    """
    _check_steps(grid)
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
    return check_monotone(grid, "grid", "sort it and drop repeated times")


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
