"""Sampling with its log-density along any guided drift."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from dgjax.guidance.guide import Guide
from dgjax.guidance.noise import ItoNoise, StratonovichNoise
from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.model.field import Field, log_prior
from dgjax.sampling.results import Info, Sampled, State, Trajectory
from dgjax.sampling.solve import Save, solve
from dgjax.sampling.solvers import Adjoint, Controller, Progress, Solver
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, concrete

__all__ = ["Info", "Sampled", "State", "Trajectory", "check_grid", "check_prior", "sample"]


def check_grid(model: Field, grid: Array) -> None:
    """Raise a ValueError unless `grid` decreases inside the model's range.

    Numbers that are traced are not looked at.
    """
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(f"grid must be (steps + 1,) with at least one step, got {grid.shape}")
    times, high, low = concrete(grid), concrete(model.t_max), concrete(model.t_min)
    if times is None:
        return
    if not (np.diff(times) < 0).all():
        raise ValueError("a sampling grid decreases, from noise (t_max) to data (t_min)")
    if high is None or low is None:
        return
    slack = 1e-6 * (high - low)
    if times[0] > high + slack or times[-1] < low - slack:
        raise ValueError(
            f"grid runs from {times[0]:g} to {times[-1]:g}, outside the model's own range "
            f"{high:g} to {low:g}; build it with grid_logsnr(model, steps)"
        )


def check_prior(model: Field, grid: Array) -> None:
    """Raise a ValueError if `grid` is known not to start at t_max, where the prior is."""
    times, high = concrete(grid), concrete(model.t_max)
    if times is None or high is None or np.isclose(times[0], high, rtol=1e-5):
        return
    raise ValueError(
        f"the prior is known at t_max = {high:g} only and the grid starts at {times[0]:g}: "
        "build it with grid_logsnr(model, steps), or pass the log-density there to sample"
    )


def sample(
    model: Field,
    x: Sample,
    grid: Float[Array, " n+1"],
    *,
    key: Key,
    log_density: Scalar | None = None,
    guides: Sequence[Guide] = (),
    noise: StratonovichNoise | ItoNoise | None = None,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    solver: Solver | None = None,
    controller: Controller | None = None,
    adjoint: Adjoint | None = None,
    save: Save | None = None,
    progress: Progress | None = None,
) -> Sampled:
    """Carries one latent from noise to data along the guided drift, tracking log p_t.

    The log-density is always that of the model's own marginals, by (A) or (B): guides change
    where the sample goes, never which density is measured.

    Args:
        model: the field.
        x: one latent of any shape, at time `grid[0]`.
        grid: (steps + 1,) decreasing times, from `grid_uniform`, `grid_logsnr` or `grid_karras`.
            One that is traced cannot be refused: if it is not monotone, log_density is NaN.
        key: for probes and noise; everything is reproducible from it.
        log_density: of `x` at `grid[0]`, in nats; the model's prior unless told.
        guides: folded left to right over the drift; those that fix the rate come last.
        noise: a stochastic term, refused by solvers of the other sense.
        divergence: trace estimator; a fresh probe at every grid point. `Untracked()` for samples
            without log-density.
        cond: what the model is conditioned on; the log-density is then log p_t(x | cond), from
            the model's prior, which is the same for every condition, unless told.
        solver: `Multistep()`, `LevelSetEuler()`, `RK4()`, `diffrax.Euler()`, `Dopri5()`, ...;
            unless told `Multistep()`, or `Multistep(2)` with a target; `LevelSetEuler()` with noise
            along the level set, `Euler()` with Ito noise, `Dopri5()` with other noise, with noise
            and a target, and with a controller.
        controller: e.g. `diffrax.PIDController(rtol, atol)` for adaptive steps; the grid then
            gives the ends and where `save` looks, and one probe serves the whole solve.
        adjoint: how gradients are taken; `diffrax.RecursiveCheckpointAdjoint()` unless told.
        save: `(t, x, log_density) -> anything`, collected at every grid point; `Trajectory`
            collects all three.
        progress: a diffrax progress meter.

    Returns:
        `Sampled(x, log_density, info, trajectory)`.

    Raises:
        ValueError: if the grid does not decrease within the model's range, x is not finite, or
            the solver and the noise are of different senses.
    """
    grid = as_float(grid)
    check_grid(model, grid)
    if log_density is None:
        check_prior(model, grid)
        log_density = log_prior(model, x)
    return solve(
        model,
        x,
        grid,
        key=key,
        log_density=log_density,
        guides=guides,
        noise=noise,
        divergence=divergence,
        cond=cond,
        solver=solver,
        controller=controller,
        adjoint=adjoint,
        save=save,
        progress=progress,
    )
