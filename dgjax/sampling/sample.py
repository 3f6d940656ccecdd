"""Sampling with log-density along any guided drift."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.guidance.guide import Guide
from dgjax.guidance.noise import ItoNoise, StratonovichNoise
from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.model.field import Field, log_prior
from dgjax.sampling.adjoints import Adjoint
from dgjax.sampling.checks import check_latent
from dgjax.sampling.results import Sampled
from dgjax.sampling.solve import Save, SolveOptions, solve
from dgjax.sampling.solvers import Controller, Progress, Solver
from dgjax.typing import Cond, Key, Sample, Scalar, as_float

__all__ = ["sample"]


def sample(
    model: Field,
    x: Sample,
    grid: Float[Array, " n+1"],
    *,
    key: Key,
    log_density: Scalar | None = None,
    guides: Guide | Sequence[Guide] = (),
    noise: StratonovichNoise | ItoNoise | None = None,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    solver: Solver | None = None,
    controller: Controller | None = None,
    adjoint: Adjoint | None = None,
    save: Save | None = None,
    progress: Progress | None = None,
) -> Sampled:
    """Carry one latent from noise to data along the guided drift, and track log p_t(x).

    The log-density is always that of the model's own marginals. Guides change where the sample
    goes, never which density is measured. It follows identity (A), d log p_t/dt = -div u +
    <v - u, s> with velocity u, drift v and score s (Density Guidance, arXiv 2502.05807, eq. 5 for
    v = u), or with noise identity (B), the same with the Stratonovich noise in dx; both are in the
    page Concepts. Batch with `jax.vmap`.

    The solve is compiled once per structure of the arguments and then kept, with or without
    `jax.jit`. Functions are the same only if they are one object: a network, a guide or a `save`
    that is a new lambda at each call is compiled at each call.

    Args:
        model: the field.
        x: one latent of any shape, at time `grid[0]`.
        grid: (steps + 1,) decreasing times, from `grid_uniform`, `grid_logsnr` or `grid_karras`.
        key: for probes and noise; results are reproducible from it.
        log_density: of `x` at `grid[0]`, in nats. By default the model's prior, for which
            `grid[0]` must be t_max.
        guides: one transform of the drift or several, applied from left to right. Put those that
            fix the rate of log p_t (density guidance, targets) last.
        noise: a stochastic term. An Ito noise needs `diffrax.Euler()`, a Stratonovich noise any
            other solver.
        divergence: trace estimator, with a fresh probe at every grid point. `Untracked()` gives
            samples without log-density.
        cond: condition of the model. The log-density is then log p_t(x | cond), and the default
            prior is the same for every condition.
        solver: `Multistep()`, `LevelSetEuler()`, `RK4()`, `diffrax.Euler()`, `diffrax.Dopri5()`
            or another explicit Runge-Kutta method of diffrax. By default, in this order:
            `Euler()` with Ito noise; `Dopri5()` with a controller; `Multistep()` without noise, or
            `Multistep(2)` if a guide has a target; `LevelSetEuler()` with noise along the level
            set and no target; `Dopri5()` with any other noise.
        controller: `diffrax.PIDController(rtol, atol)` for adaptive steps. The grid then gives the
            two ends and the times for `save`, and one probe serves the whole solve.
        adjoint: how derivatives are taken. By default the steps of the grid serve reverse and
            forward mode and keep one state a step in memory. An adjoint of diffrax changes that:
            `diffrax.RecursiveCheckpointAdjoint(k)` keeps k states, for reverse mode only. Adaptive
            steps use it by default; there `dgjax.FORWARD` is for forward mode (`jax.jvp`,
            `jax.jacfwd`) and `dgjax.BOTH_MODES` for both (`jax.linearize`, `jax.hessian`).
        save: `(t, x, log_density) -> anything`, collected at every grid point; `Trajectory`
            collects all three.
        progress: a diffrax progress meter, such as `diffrax.TextProgressMeter()`.

    Returns:
        `Sampled(x, log_density, info, trajectory)`, with log_density in nats. Where JAX is tracing,
        a check of numbers cannot raise: log_density is then NaN and `info.fault` names the check.

    Raises:
        ValueError: if x is not of the model's shape, not floating or not finite, the grid does not
            decrease within the model's range, or does not start at t_max and `log_density` is left
            out, or solver, noise and controller do not go together.
    """
    x, grid = jnp.asarray(x), as_float(grid)
    fault = check_latent(model, x, grid, log_density)
    if log_density is None:
        log_density = log_prior(model, x)
    options = SolveOptions(guides, noise, divergence, solver, controller, adjoint, save, progress)
    return solve(
        condition(model, cond),
        x,
        grid,
        key=key,
        log_density=log_density,
        options=options,
        fault=fault,
    )
