"""One solve: the sample and its log-density, integrated together by diffrax along a guided drift.

**Formulas.** With v the drift after all guides, u the velocity of the model, s its score and G the
noise, the solver integrates

    dx = v dt + G o dW,
    d log p_t(x) = -div u dt + <dx - u dt, s>,      identities (A), without noise, and (B),

in either direction of time. (B) is in the Stratonovich sense, so with noise only Stratonovich
solvers are right; an Ito noise brings its own Euler step instead.

**Names.** `_Augmented` is the diffrax term: `contr` returns (dt, dW), `vf` evaluates model and
guides, and `prod` makes the increment of `State` of the two. The model runs once per stage of the
solver, whatever is tracked. `_by_steps` takes the log-densities that the solver tracked, and
`_by_nodes` integrates them afterwards from the evaluations of `Multistep`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import diffrax
import equinox
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.guidance.guide import Guide, ScoreWeightGuide, apply_guides
from dgjax.guidance.noise import ItoNoise, StratonovichNoise
from dgjax.model.distilled import count_estimates
from dgjax.model.divergence import Divergence, Hutchinson, Untracked
from dgjax.model.faults import Code, Fault, first, refuse
from dgjax.model.field import Field
from dgjax.model.local import Local, evaluate, evaluate_with_rates
from dgjax.model.paths import Path
from dgjax.sampling.adjoints import Adjoint, default_adjoint, guard_inputs, guard_results
from dgjax.sampling.arguments import as_guides, check_options
from dgjax.sampling.checks import check_solver
from dgjax.sampling.compiled import compile_once, on_any_mesh
from dgjax.sampling.integrate import integrate
from dgjax.sampling.multistep import empty_node
from dgjax.sampling.results import Errors, Sampled, summarize
from dgjax.sampling.scanned_stages import ScannedStages
from dgjax.sampling.solver_quadrature import integrate_nodes
from dgjax.sampling.solvers import (
    Controller,
    Multistep,
    Progress,
    Solver,
    default_solver,
)
from dgjax.sampling.stage_error import StageErrors, knows_error
from dgjax.sampling.state import Evaluation, Stage, Start, State, zeros_of
from dgjax.sampling.traced_numbers import check_guides
from dgjax.typing import Key, Sample, Scalar, inner

__all__ = ["Save", "SolveOptions", "solve"]

Save: TypeAlias = Callable[[Scalar, Sample, Scalar], Any]
"""(t, x, log_density) -> anything, collected at every grid point."""


class SolveOptions(NamedTuple):
    """Options of a solve. The fields are the arguments of `sample` with the same names."""

    guides: Guide | Sequence[Guide] = ()
    noise: StratonovichNoise | ItoNoise | None = None
    divergence: Divergence = Hutchinson()
    solver: Solver | None = None
    controller: Controller | None = None
    adjoint: Adjoint | None = None
    save: Save | None = None
    progress: Progress | None = None


class _Problem(NamedTuple):
    """diffrax's `args`: all arrays that gradients may be taken of."""

    model: Field
    guides: tuple[Guide, ...]
    noise: Any
    divergence: Divergence
    fault: Array | None  # None if all checks are known to hold


class _Augmented(diffrax.AbstractTerm):
    """The increment of `State` over (dt, dW)."""

    grid: Array
    probe_key: Key
    noise_key: Key
    like: jax.ShapeDtypeStruct = equinox.field(static=True)
    stochastic: bool = equinox.field(static=True)
    stages: bool = equinox.field(static=True)
    rates: bool = equinox.field(static=True)

    def _passed(self, times, t):
        """Count the `times` at or before t, in the direction of the solve."""
        sign = jnp.sign(self.grid[-1] - self.grid[0])
        return jnp.sum(sign * times <= sign * t)

    def _probe_key(self, t):
        # One probe for the half steps on both sides of a grid point: stages at the end of a step
        # then share it with the start of the next step, and every Runge-Kutta method here puts
        # positive weights on both halves (Tsit5's weights at the very end are -1.3 and 2.3).
        middles = 0.5 * (self.grid[1:] + self.grid[:-1])
        return jax.random.fold_in(self.probe_key, self._passed(middles, t))

    def _evaluate(self, t, y: State, args: _Problem) -> Evaluation:
        options = {
            "divergence": args.divergence,
            "key": self._probe_key(t),
            "log_densities": y.log_densities,
        }
        along = None
        if self.rates:
            local, along = evaluate_with_rates(args.model, t, y.x, **options)
        else:
            local = evaluate(args.model, t, y.x, **options)
        drift = apply_guides(args.guides, local)
        rate = None if along is None else along(drift)
        return Evaluation(drift, local, _at_bound(args.guides, local), rate)

    def vf(self, t, y, args):
        evaluation = self._evaluate(t, y, args)
        # diffrax stores what this returns, and a function cannot be stored.
        stored = evaluation._replace(local=evaluation.local._replace(hvp=None))
        return stored, args.noise

    def contr(self, t0, t1, **kwargs):
        del kwargs
        dt = t1 - t0
        if not self.stochastic:
            return dt, None
        step = jnp.minimum(self._passed(self.grid, t0), self._passed(self.grid, t1))
        key = jax.random.fold_in(self.noise_key, step)
        # The increment between two times has the opposite sign in the other direction.
        scale = (jnp.sign(dt) * jnp.sqrt(jnp.abs(dt))).astype(self.like.dtype)
        return dt, scale * jax.random.normal(key, self.like.shape, self.like.dtype)

    def prod(self, vf, control):
        evaluation, noise = vf
        drift, local = evaluation.drift, evaluation.local
        dt, dW = control
        dx = drift * dt
        if noise is not None:
            dx = dx + noise.increment(local, dt, dW)
        gain = inner(dx - local.velocity * dt, local.score) - local.divergences * dt
        increment = _increment(dx, gain, evaluation, dt)
        return increment._replace(stage=_stage(local, dt)) if self.stages else increment

    def vf_prod(self, t, y, args, control):
        if not isinstance(args.noise, ItoNoise):
            return self.prod(self.vf(t, y, args), control)
        evaluation = self._evaluate(t, y, args)
        dx, gain = args.noise.step(evaluation.drift, evaluation.local, *control)
        return _increment(dx, gain, evaluation, control[0])


def _at_bound(guides: Sequence[Guide], local: Local) -> Scalar:
    """1 if a guide is stopped by its bound at this point, else 0."""
    at_bound = jnp.zeros((), local.x.dtype)
    for guide in guides:
        if isinstance(guide, ScoreWeightGuide):
            at_bound = jnp.maximum(at_bound, (guide.excess(local) > 0).astype(at_bound.dtype))
    return at_bound


def _increment(dx, gain, evaluation: Evaluation, dt) -> State:
    # g^2 = -sigma^2 dlogsnr/dt, so that |sigma s|^2 dlogsnr is -g^2 |s|^2 dt.
    local = evaluation.local
    passed = -local.g2 * dt
    scale = jnp.where(local.sigma == 0, 1, local.sigma)  # diffrax's stages start as zeros
    score_integral = passed * jnp.sum(local.score**2)
    return State(dx, gain, score_integral, evaluation.at_bound * passed / scale**2)


def _stage(local: Local, dt) -> Stage:
    # -div u = -D f + g^2/2 Lap log p, and g^2 dt = 2 sigma^2 d log w.
    without = local.x.size * local.f + 0.5 * local.g2 * jnp.sum(local.score**2)
    heat = without - local.divergence
    return Stage(local.score * dt, local.alpha * dt, local.sigma * dt, local.logsnr * dt, heat * dt)


def solve(
    model: Field,
    x: Sample,
    grid: Float[Array, " n+1"],
    *,
    key: Key,
    log_density: Scalar,
    options: SolveOptions,
    fault: Code,
) -> Sampled:
    """Integrate the sample and its log-density along `grid`, in either direction of time.

    Args:
        model: the field, with its condition.
        x: one sample of any shape, at time `grid[0]`.
        grid: (steps + 1,) strictly monotone times.
        key: for probes and noise.
        log_density: of `x` at `grid[0]`, in nats.
        options: guides, noise, divergence, solver and what else `sample` takes.
        fault: the code of the checks of the other arguments. Log-densities are NaN if one failed.

    Returns:
        `Sampled` at time `grid[-1]`.

    Raises:
        ValueError: if the grid is not monotone, or solver, noise and controller do not go together.
    """
    guides, noise, controller = as_guides(options.guides), options.noise, options.controller
    check_options(
        noise=noise,
        divergence=options.divergence,
        solver=options.solver,
        controller=controller,
        adjoint=options.adjoint,
        progress=options.progress,
    )
    solver = options.solver or default_solver(guides, noise, controller)
    in_order = check_solver(grid, noise, solver, controller)
    fault = first(fault, in_order, check_guides(guides, noise))
    start = jnp.asarray(log_density, x.dtype)
    options = options._replace(guides=guides, solver=solver)
    return _solve(model, x, grid, key, start, options, fault)


@on_any_mesh
@compile_once
def _solve(
    model: Field, x: Sample, grid, key: Key, start: Scalar, options: SolveOptions, fault: Code
) -> Sampled:
    """Solve with arguments that were checked. `start` is the log-density at `grid[0]`."""
    _, noise, divergence, solver, controller, adjoint, save, progress = options
    guides = as_guides(options.guides)
    assert solver is not None
    probe_key, noise_key = jax.random.split(key)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    # Adaptive steps need an integrand that is smooth in time: one probe for the whole solve, which
    # a grid of one time has.
    probe_grid = grid if controller is None else grid[:1]
    stages = knows_error(solver) and not isinstance(divergence, Untracked)
    rates = isinstance(solver, Multistep) and solver.derivatives > 0
    term = _Augmented(probe_grid, probe_key, noise_key, like, noise is not None, stages, rates)
    traced = None if isinstance(fault, Fault) else fault
    adjoint = default_adjoint(controller) if adjoint is None else adjoint
    problem = _Problem(model, guides, noise, divergence, traced)
    problem, x, grid, start = guard_inputs(adjoint, (problem, x, grid, start))
    # Without an adjoint the steps are a scan, and so are their stages.
    scanned = adjoint is None and isinstance(solver, diffrax.AbstractERK)
    method = ScannedStages(solver) if scanned else solver
    run = partial(
        integrate,
        term,
        StageErrors(method) if stages else method,
        args=problem,
        controller=controller,
        adjoint=adjoint,
        progress=progress,
    )
    state = _initial_state(x, start, divergence, key)
    if isinstance(solver, Multistep):
        state = state._replace(start=Start(x, empty_node(x, state.log_densities)))
    # `Untracked` has nothing to integrate, and then needs no evaluation at the last point.
    if isinstance(solver, Multistep) and not isinstance(divergence, Untracked):
        end, scores, trajectory, errors = _by_nodes(run, model.path, grid, state, save, fault)
    else:
        end, scores, trajectory, error = _by_steps(run, grid, state, save)
        errors = Errors(jnp.inf, error)
    end = end._replace(log_densities=refuse(fault, end.log_densities))
    info = summarize(model, grid, guides, divergence, end, scores, errors, fault, x)
    sampled = Sampled(end.x, jnp.mean(end.log_densities), info, trajectory)
    return guard_results(adjoint, sampled)


def _initial_state(x, start, divergence: Divergence, key) -> State:
    estimates = count_estimates(divergence, x, key)
    zero = zeros_of(x)
    return State(x, jnp.broadcast_to(start + zero, estimates.shape), zero, zero)


def _by_steps(run, grid, state: State, save: Save | None):
    """The state at the end, its score integral and `save` at every grid point, and the error."""

    def point(t, y, args):
        if save is None:
            return y.score_integral, None
        fault = Fault.NONE if args.fault is None else args.fault
        return y.score_integral, save(t, y.x, refuse(fault, jnp.mean(y.log_densities)))

    end, (scores, trajectory), solver_state = run(state=state, grid=grid, save=point)
    errors = getattr(solver_state, "errors", None)
    error = jnp.inf if errors is None else errors.size  # infinite is unknown
    return end, scores, trajectory, error


def _by_nodes(run, path: Path, grid, state: State, save: Save | None, fault: Code):
    """Solve like `_by_steps`, with log-densities by quadrature and the errors that it knows."""
    # The model is evaluated at the start of a step. One more step, the shortest possible, has it
    # evaluated at the last grid point; the end of that step is not used.
    last, before = jax.lax.stop_gradient((grid[-1], grid[-2]))
    beyond = grid[-1] + (jnp.nextafter(last, 2 * last - before) - last)

    def point(t, y, args):
        del t, args
        return y.score_integral, y.start.node, None if save is None else y.x

    end, (scores, nodes, xs), _ = run(state=state, grid=jnp.append(grid, beyond), save=point)
    nodes = jax.tree.map(lambda a: a[1:], nodes)  # a step stores its start
    x = end.start.x
    found = integrate_nodes(path, grid, jnp.asarray(x.size, grid.dtype), nodes, state.log_densities)
    # The solver carries a log-density of its own, by another quadrature through earlier points.
    carried = jnp.abs(jnp.mean(end.log_densities - found.log_densities[-1]))
    errors = Errors(found.scatter, jnp.maximum(found.error, carried))
    end = State(x, found.log_densities[-1], scores[-2], end.bound_integral)
    log_densities = refuse(fault, jnp.mean(found.log_densities, -1))
    trajectory = None if save is None else jax.vmap(save)(grid, xs[:-1], log_densities)
    return end, scores[:-1], trajectory, errors
