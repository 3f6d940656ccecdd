"""Integration of a state along a grid of times.

The steps of a fixed grid are one `jax.lax.scan`. Each step is a checkpoint: in reverse mode a step
is computed again from the state before it, so that n steps keep n states and the intermediate
results of one evaluation of the network. Forward mode works too.

Adaptive steps, and fixed steps under an adjoint that the caller chose, are a `diffrax.diffeqsolve`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.sampling.adjoints import Adjoint
from dgjax.sampling.solvers import Controller, FixedSteps, Progress, Solver
from dgjax.typing import Scalar

__all__ = ["Integrated", "integrate"]

ADAPTIVE_STEPS = 4096  # at most


class Integrated(NamedTuple):
    """The result of an integration.

    Attributes:
        end: the state at the last grid point.
        saved: what was saved, with a leading axis of grid points.
        solver_state: of the solver at the end.
    """

    end: Any
    saved: Any
    solver_state: Any


def integrate(
    term: diffrax.AbstractTerm,
    solver: Solver,
    state: Any,
    grid: Float[Array, " n+1"],
    args: Any,
    save: Callable[[Scalar, Any, Any], Any],
    *,
    controller: Controller | None = None,
    adjoint: Adjoint | None = None,
    progress: Progress | None = None,
) -> Integrated:
    """Integrate a term from `grid[0]` to `grid[-1]`.

    Args:
        term: the increment of the state.
        solver: any solver of diffrax.
        state: at `grid[0]`, a pytree such as `State`.
        grid: (n + 1,) strictly monotone times, the ends of the steps if there is no controller.
        args: diffrax's `args`: all arrays that gradients may be taken of.
        save: `(t, state, args) -> anything`, collected at every grid point.
        controller: of adaptive steps; they need an adjoint, as of `default_adjoint`.
        adjoint: how derivatives are taken. None, for fixed steps, is the scan.
        progress: a progress meter.

    Returns:
        `Integrated`.
    """
    meter = diffrax.NoProgressMeter() if progress is None else progress
    if adjoint is None:
        return _scan(term, solver, state, grid, args, save, meter)
    when: dict[str, Any]
    if controller is None:
        steps, when = grid.shape[0] - 1, {"t0": True, "steps": True}
        controller = FixedSteps(grid)
    else:
        steps, when = ADAPTIVE_STEPS, {"ts": grid}
    found = diffrax.diffeqsolve(
        term,
        solver,
        t0=grid[0],
        t1=grid[-1],
        dt0=None,
        y0=state,
        args=args,
        saveat=diffrax.SaveAt(
            subs=[diffrax.SubSaveAt(t1=True), diffrax.SubSaveAt(fn=save, **when)],
            solver_state=True,
        ),
        stepsize_controller=controller,
        adjoint=adjoint,
        max_steps=steps,
        throw=False,
        progress_meter=meter,
    )
    end, saved = found.ys
    return Integrated(jax.tree.map(lambda a: a[0], end), saved, found.solver_state)


def _scan(term, solver, state, grid, args, save, meter: Progress) -> Integrated:
    def step(state, solver_state, t0, t1):
        state, _, _, solver_state, _ = solver.step(
            term, t0, t1, state, args, solver_state, made_jump=False
        )
        return state, solver_state, save(t1, state, args)

    def body(carry, times):
        state, solver_state, bar = carry
        t0, t1 = times
        passed = jax.lax.stop_gradient((t0 - grid[0]) / (grid[-1] - grid[0]))
        bar = meter.step(bar, passed)
        state, solver_state, saved = jax.checkpoint(step, prevent_cse=False)(
            state, solver_state, t0, t1
        )
        return (state, solver_state, bar), saved

    first = solver.init(term, grid[0], grid[1], state, args)
    start = save(grid[0], state, args)
    carry, saved = jax.lax.scan(body, (state, first, meter.init()), (grid[:-1], grid[1:]))
    end, solver_state, bar = carry
    meter.close(bar)
    saved = jax.tree.map(lambda a, rest: jnp.concatenate([a[None], rest]), start, saved)
    return Integrated(end, saved, solver_state)
