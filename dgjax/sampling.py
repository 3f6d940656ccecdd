"""The augmented equation (state and log-density together) along any guided drift, in diffrax.

One term carries everything: its control is (dt, dW), its vector field is the `Local` at (t, x),
so the network runs once a stage whatever is asked. Deterministic and Stratonovich steps go
through any explicit Runge-Kutta method of diffrax, Ito steps through Euler.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.divergence import Divergence, Hutchinson
from dgjax.fields import Field, Local, condition, evaluate, log_prior
from dgjax.guidance import Guide, SteersScore, apply_guides
from dgjax.noise import ItoNoise, StratonovichNoise
from dgjax.results import Info, Sampled, State, Trajectory, summarize
from dgjax.solvers import Adjoint, Controller, FixedSteps, Progress, Solver, check_solve
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, inner, known

__all__ = ["Info", "Sampled", "State", "Trajectory", "check_grid", "check_prior", "sample", "solve"]


class _Problem(NamedTuple):
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
        return drift, local._replace(jvp=None), _stopped(args.guides, local), args.noise

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
        if isinstance(guide, SteersScore):
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
    save: Callable[[Scalar, Sample, Scalar], Any] | None = None,
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
    term = _Augmented(probe_grid, probe_key, noise_key, like, noise is not None)
    problem = _Problem(model, tuple(guides), noise, divergence, None)

    count = jax.eval_shape(lambda x, key: divergence(lambda z: z, x, key), x, key).shape[0]
    start = jnp.asarray(log_density, x.dtype)
    if known(grid) is None:  # then `check_solve` could not look
        monotone = jnp.all(jnp.diff(grid) > 0) | jnp.all(jnp.diff(grid) < 0)
        start = jnp.where(monotone, start, jnp.nan)
    zero = jnp.zeros((), x.dtype)
    state = State(x, jnp.broadcast_to(start, (count,)), zero, zero)

    def scalars(t, y, args):
        del t, args
        return y.score_norm2

    def saved(t, y, args):
        del args
        return None if save is None else save(t, y.x, jnp.mean(y.log_densities))

    when: dict[str, Any]
    if controller is None:
        steps, when = grid.shape[0] - 1, {"t0": True, "steps": True}
        controller = FixedSteps(grid)
    else:
        steps, when = 4096, {"ts": grid}
    solution = diffrax.diffeqsolve(
        term,
        solver,
        grid[0],
        grid[-1],
        None,
        state,
        args=problem,
        saveat=diffrax.SaveAt(
            subs=[
                diffrax.SubSaveAt(t1=True),
                diffrax.SubSaveAt(fn=scalars, **when),
                diffrax.SubSaveAt(fn=saved, **when),
            ]
        ),
        stepsize_controller=controller,
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        max_steps=steps,
        throw=False,
        progress_meter=diffrax.NoProgressMeter() if progress is None else progress,
    )
    end, course, trajectory = solution.ys
    end = jax.tree.map(lambda a: a[0], end)
    reached = jnp.mean(end.log_densities)
    return Sampled(
        end.x, reached, summarize(model, grid, guides, divergence, end, course), trajectory
    )


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
    save: Callable[[Scalar, Sample, Scalar], Any] | None = None,
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
