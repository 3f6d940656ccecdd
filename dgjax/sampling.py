"""Sampling and its log-density along any guided drift, by diffrax.

Deterministic and Stratonovich steps go through any explicit Runge-Kutta method of diffrax, Ito
steps through Euler, and `Multistep` takes deterministic ones with one evaluation each.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.augmented import Augmented, Problem
from dgjax.divergence import Divergence, Hutchinson
from dgjax.fields import Field, condition, log_prior
from dgjax.guidance import Guide
from dgjax.multistep import Multistep
from dgjax.nodes import Node, along_drift
from dgjax.noise import ItoNoise, StratonovichNoise
from dgjax.paths import Path
from dgjax.results import Info, Sampled, State, Trajectory, summarize
from dgjax.solvers import Adjoint, Controller, FixedSteps, Progress, Solver, check_solve
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, known

__all__ = ["Info", "Sampled", "State", "Trajectory", "check_grid", "check_prior", "sample", "solve"]

# (t, x, log_density) to anything, collected at every grid point
Save: TypeAlias = Callable[[Scalar, Sample, Scalar], Any]


def solve(
    model: Field,
    x: Sample,
    grid: Float[Array, " n+1"],
    *,
    key: Key,
    log_density: Scalar,
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
    """Integrates the augmented equation along `grid`, in either direction of time.

    The workhorse of `sample` and `likelihood`; arguments as in `sample`, but `log_density` is
    that of `x` at `grid[0]`, and the grid may run either way.
    """
    x = jnp.asarray(x)
    grid = as_float(grid)
    solver = diffrax.Heun() if solver is None else solver
    check_solve(x, grid, noise, solver, controller)
    model = condition(model, cond)
    jax.eval_shape(model.pair, grid[0], x)  # what a network refuses, it says here in its own words

    probe_key, noise_key = jax.random.split(key)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    # Adaptive steps need an integrand that is smooth in time: one probe for the whole solve, which
    # a grid of one time alone gives.
    probe_grid = grid if controller is None else grid[:1]
    term = Augmented(probe_grid, probe_key, noise_key, like, noise is not None)
    problem = Problem(model, tuple(guides), noise, divergence, None)

    count = jax.eval_shape(lambda x, key: divergence(lambda z: z, x, key), x, key).shape[0]
    start = jnp.asarray(log_density, x.dtype)
    if known(grid) is None:  # then `check_solve` could not look
        monotone = jnp.all(jnp.diff(grid) > 0) | jnp.all(jnp.diff(grid) < 0)
        start = jnp.where(monotone, start, jnp.nan)
    zero = jnp.zeros((), x.dtype)
    state = State(x, jnp.broadcast_to(start, (count,)), zero, zero)

    run = partial(
        diffrax.diffeqsolve,
        term,
        solver,
        dt0=None,
        args=problem,
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        throw=False,
        progress_meter=diffrax.NoProgressMeter() if progress is None else progress,
    )
    if isinstance(solver, Multistep):
        end, course, trajectory = _by_nodes(run, model.path, grid, state, save)
    else:
        end, course, trajectory = _by_steps(run, grid, state, controller, save)
    info = summarize(model, grid, guides, divergence, end, course)
    return Sampled(end.x, jnp.mean(end.log_densities), info, trajectory)


def _course(t, y, args):
    del t, args
    return y.score_norm2


def _by_steps(run, grid, state, controller: Controller | None, save: Save | None):
    """The state at the end, the course of its |sigma s|^2, and what `save` makes on the way."""

    def saved(t, y, args):
        del args
        return None if save is None else save(t, y.x, jnp.mean(y.log_densities))

    when: dict[str, Any]
    if controller is None:
        steps, when = grid.shape[0] - 1, {"t0": True, "steps": True}
        controller = FixedSteps(grid)
    else:
        steps, when = 4096, {"ts": grid}
    subs = [
        diffrax.SubSaveAt(t1=True),
        diffrax.SubSaveAt(fn=_course, **when),
        diffrax.SubSaveAt(fn=saved, **when),
    ]
    end, course, trajectory = run(
        t0=grid[0],
        t1=grid[-1],
        y0=state,
        saveat=diffrax.SaveAt(subs=subs),
        stepsize_controller=controller,
        max_steps=steps,
    ).ys
    return jax.tree.map(lambda a: a[0], end), course, trajectory


def _by_nodes(run, path: Path, grid, state: State, save: Save | None):
    """As `_by_steps`, with the log-density from the nodes of the whole trajectory."""
    # The model is evaluated at the start of a step: one step more, as short as can be, has it
    # evaluated at the last point, and where it leads is not looked at.
    last = grid[-1]
    beyond = last + jax.lax.stop_gradient(jnp.nextafter(last, 2 * last - grid[-2]) - last)
    walked = jnp.append(grid, beyond)

    def found(t, y, args):
        del t, args
        return y.x, y.node

    when: dict[str, Any] = {"t0": True, "steps": True}
    subs = [
        diffrax.SubSaveAt(t1=True),
        diffrax.SubSaveAt(fn=_course, **when),
        diffrax.SubSaveAt(fn=found, **when),
    ]
    end, course, (xs, nodes) = run(
        t0=walked[0],
        t1=walked[-1],
        y0=state._replace(node=Node(state.x, state.log_densities, state.x)),
        saveat=diffrax.SaveAt(subs=subs),
        stepsize_controller=FixedSteps(walked),
        max_steps=walked.shape[0] - 1,
    ).ys
    xs, nodes = xs[:-1], jax.tree.map(lambda a: a[1:], nodes)
    every = along_drift(path, grid, xs, nodes, state.log_densities)
    end = State(xs[-1], every[-1], course[-2], end.bounded[0])
    trajectory = None if save is None else jax.vmap(save)(grid, xs, jnp.mean(every, -1))
    return end, course[:-1], trajectory


def check_grid(model: Field, grid: Array) -> None:
    """Raise a ValueError unless `grid` decreases inside the model's range.

    Numbers that are traced are not looked at.
    """
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(f"grid must be (steps + 1,) with at least one step, got {grid.shape}")
    times, high, low = known(grid), known(model.t_max), known(model.t_min)
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
            f"{high:g} to {low:g}; build it with grid_karras(model, steps)"
        )


def check_prior(model: Field, grid: Array) -> None:
    """Raise a ValueError if `grid` is known not to start at t_max, where the prior is."""
    times, high = known(grid), known(model.t_max)
    if times is None or high is None or np.isclose(times[0], high, rtol=1e-5):
        return
    raise ValueError(
        f"the prior is known at t_max = {high:g} only and the grid starts at {times[0]:g}: "
        "build it with grid_karras(model, steps), or pass the log-density there to sample"
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
        solver: `diffrax.Euler()`, `Heun()` (default), `RK4()`, `diffrax.Dopri5()`, ...
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
