"""The augmented equation, state and log-density together along any guided drift, in diffrax.

One term carries everything: its control is (dt, dW), its vector field is the `Local` at (t, x),
so the network runs once a stage whatever is asked. Deterministic and Stratonovich steps go
through any explicit Runge-Kutta method of diffrax, Ito steps through Euler; `Multistep` and
`LevelSetEuler` take one evaluation each.
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
from dgjax.model.divergence import Divergence, Hutchinson, Untracked
from dgjax.model.field import Field, condition
from dgjax.model.local import Local, evaluate
from dgjax.model.paths import Path
from dgjax.sampling.node_quadrature import Node, along_drift
from dgjax.sampling.results import Sampled, State, summarize
from dgjax.sampling.solvers import (
    Adjoint,
    Controller,
    FixedSteps,
    Multistep,
    Progress,
    Solver,
    check_solve,
    default_solver,
)
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, concrete, inner

__all__ = ["Save", "solve"]

# (t, x, log_density) to anything, collected at every grid point
Save: TypeAlias = Callable[[Scalar, Sample, Scalar], Any]


class _Problem(NamedTuple):
    """What travels in diffrax's `args`."""

    model: Field
    guides: tuple[Guide, ...]
    noise: Any
    divergence: Divergence
    cond: Cond


class _Augmented(diffrax.AbstractTerm):
    """The increment of `State` over (dt, dW); the problem travels in `args`."""

    grid: Array
    probe_key: Key
    noise_key: Key
    like: jax.ShapeDtypeStruct = equinox.field(static=True)
    stochastic: bool = equinox.field(static=True)

    def _passed(self, times, t):
        """How many of `times` lie at or before t, in the direction of the solve."""
        sign = jnp.sign(self.grid[-1] - self.grid[0])
        return jnp.sum(sign * times <= sign * t)

    def _probe_key(self, t):
        # One probe to the half steps on both sides of a grid point: stages at a step's end then
        # share it with the next step's start, and every Runge-Kutta method here puts positive
        # weights on both halves (Tsit5's weights at the very end of a step are -1.3 and 2.3).
        middles = 0.5 * (self.grid[1:] + self.grid[:-1])
        return jax.random.fold_in(self.probe_key, self._passed(middles, t))

    def _local(self, t, y: State, args: _Problem) -> tuple[Sample, Local]:
        local = evaluate(
            args.model,
            t,
            y.x,
            divergence=args.divergence,
            key=self._probe_key(t),
            log_densities=y.log_densities,
            cond=args.cond,
        )
        return apply_guides(args.guides, local), local

    def vf(self, t, y, args):
        drift, local = self._local(t, y, args)
        return drift, local._replace(hvp=None), _stopped(args.guides, local), args.noise

    def contr(self, t0, t1, **kwargs):
        del kwargs
        dt = t1 - t0
        if not self.stochastic:
            return dt, None
        step = jnp.minimum(self._passed(self.grid, t0), self._passed(self.grid, t1))
        key = jax.random.fold_in(self.noise_key, step)
        scale = jnp.sqrt(jnp.abs(dt)).astype(self.like.dtype)
        return dt, scale * jax.random.normal(key, self.like.shape, self.like.dtype)

    def prod(self, vf, control):
        drift, local, stopped, noise = vf
        dt, dW = control
        dx = drift * dt
        if noise is not None:
            dx = dx + noise.increment(local, dt, dW)
        gain = inner(dx - local.velocity * dt, local.score) - local.divergences * dt
        return _increment(dx, gain, local, stopped, dt)

    def vf_prod(self, t, y, args, control):
        if not isinstance(args.noise, ItoNoise):
            return self.prod(self.vf(t, y, args), control)
        drift, local = self._local(t, y, args)
        dx, gain = args.noise.step(drift, local, *control)
        return _increment(dx, gain, local, _stopped(args.guides, local), control[0])


def _stopped(guides: Sequence[Guide], local: Local) -> Scalar:
    stopped = jnp.zeros((), local.x.dtype)
    for guide in guides:
        if isinstance(guide, ScoreWeightGuide):
            stopped = jnp.maximum(stopped, (guide.excess(local) > 0).astype(stopped.dtype))
    return stopped


def _increment(dx, gain, local: Local, stopped, dt) -> State:
    # g^2 = -sigma^2 dlogsnr/dt, and |sigma s|^2 dlogsnr is then -g^2 |s|^2 dt.
    passed = -local.g2 * dt
    scale = jnp.where(local.sigma == 0, 1, local.sigma)  # stage buffers start as zeros
    return State(dx, gain, passed * jnp.sum(local.score**2), stopped * passed / scale**2)


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
    solver = default_solver(guides, noise, controller) if solver is None else solver
    check_solve(x, grid, noise, solver, controller)
    model = condition(model, cond)
    jax.eval_shape(model.pair, grid[0], x)  # what a network refuses, it says here in its own words

    probe_key, noise_key = jax.random.split(key)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    # Adaptive steps need an integrand that is smooth in time: one probe for the whole solve, which
    # a grid of one time alone gives.
    probe_grid = grid if controller is None else grid[:1]
    term = _Augmented(probe_grid, probe_key, noise_key, like, noise is not None)
    problem = _Problem(model, tuple(guides), noise, divergence, None)

    count = jax.eval_shape(lambda x, key: divergence(lambda z: z, x, key), x, key).shape[0]
    start = jnp.asarray(log_density, x.dtype)
    if concrete(grid) is None:  # then `check_solve` could not look
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
        state = state._replace(node=Node(x, state.log_densities, x))
    # What is not tracked need not be evaluated at the last point.
    if isinstance(solver, Multistep) and not isinstance(divergence, Untracked):
        end, course, trajectory, scatter = _by_nodes(run, model.path, grid, state, save)
    else:
        end, course, trajectory = _by_steps(run, grid, state, controller, save)
        scatter = jnp.nan
    info = summarize(model, grid, guides, divergence, end, course, scatter)
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
    """As `_by_steps`, with the log-density, and its scatter, from the nodes of the trajectory."""
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
        y0=state,
        saveat=diffrax.SaveAt(subs=subs),
        stepsize_controller=FixedSteps(walked),
        max_steps=walked.shape[0] - 1,
    ).ys
    xs, nodes = xs[:-1], jax.tree.map(lambda a: a[1:], nodes)
    every, scatter = along_drift(path, grid, xs, nodes, state.log_densities)
    end = State(xs[-1], every[-1], course[-2], end.bounded[0])
    trajectory = None if save is None else jax.vmap(save)(grid, xs, jnp.mean(every, -1))
    return end, course[:-1], trajectory, scatter
