"""Solvers: diffrax's explicit ones by name, the classical Runge-Kutta, and what fits what."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, TypeAlias

import diffrax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dgjax.guidance.guide import Guide, HasTarget
from dgjax.guidance.noise import ItoNoise, LevelSetNoise
from dgjax.model.coloured_probes import Coloured
from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.sampling.level_set import Evaluation, arrive, leave, stand
from dgjax.sampling.multistep import advance, nothing_past
from dgjax.typing import concrete

__all__ = [
    "FORWARD",
    "RK4",
    "SOLVERS",
    "Adjoint",
    "Controller",
    "FixedSteps",
    "LevelSetEuler",
    "Multistep",
    "Progress",
    "Solver",
    "check_solve",
    "default_divergence",
    "default_name",
    "default_solver",
]

Solver: TypeAlias = diffrax.AbstractSolver
Controller: TypeAlias = diffrax.AbstractStepSizeController
Adjoint: TypeAlias = diffrax.AbstractAdjoint
Progress: TypeAlias = diffrax.AbstractProgressMeter

FORWARD = diffrax.ForwardMode()  # the adjoint for jvps through a solve


class RK4(diffrax.AbstractERK, diffrax.AbstractStratonovichSolver):
    """Classical fourth-order Runge-Kutta: four evaluations a step.

    For stochastic density guidance its pathwise order is 2. The embedded method, for adaptive
    steps, is the midpoint rule.
    """

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.array([1 / 6, -2 / 3, 1 / 3, 1 / 6]),
        c=np.array([0.5, 0.5, 1.0]),
    )
    interpolation_cls: ClassVar = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms) -> int:
        del terms
        return 4

    def strong_order(self, terms) -> float:
        del terms
        return 0.5


class Multistep(diffrax.AbstractSolver):
    """Exponential Adams-Bashforth of any order, on fixed grids, for ODEs.

    Its order rises from 1 over the first steps. Log-densities are carried along by Adams-Moulton,
    for what steers by them; what `sample` and `likelihood` return is integrated afterwards, from
    all points at once (`dgjax.sampling.node_quadrature`), and is free of the sampler's own error.

    Args:
        memory: evaluations that a step draws on, and its order. A guide with a target wants 2:
            its feedback oscillates with a longer one.

    Raises:
        ValueError: if `memory` is not a positive int.
    """

    memory: int = 4
    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def __check_init__(self):
        if not isinstance(self.memory, int) or self.memory < 1:
            raise ValueError(f"memory must be a positive int, got {self.memory!r}")

    def order(self, terms) -> int:
        del terms
        return self.memory

    def init(self, terms, t0, t1, y0, args):
        del terms, t0, t1, args
        return nothing_past(self.memory, y0.x, y0.log_densities)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del made_jump
        drift, local, stopped, _ = terms.vf(t0, y0, args)
        dt, _ = terms.contr(t0, t1)  # in the model's own time, which diffrax may have turned
        path = args.model.path
        y1, past = advance(self.memory, path, solver_state, y0, drift, local, stopped, dt)
        return y1, None, {"y0": y0, "y1": y1}, past, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        raise NotImplementedError("a multistep method takes a fixed grid")


class LevelSetEuler(diffrax.AbstractSolver):
    """Stochastic density guidance with one evaluation a step, and one at the start.

    Exponential Euler steps whose noise turns along the level set (`dgjax.sampling.level_set`).
    Like a multistep method it takes what it lacks, the curvature of the level set, from the step
    before. Pathwise order 1, and the log-density is that of the point reached. On fixed grids, for
    `level_set_noise`.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def order(self, terms) -> int:
        del terms
        return 1

    def strong_order(self, terms) -> float:
        del terms
        return 0.5

    def init(self, terms, t0, t1, y0, args):
        del t1
        return stand(self._evaluation(terms, t0, y0, args))

    def _evaluation(self, terms, t, y, args) -> Evaluation:
        drift, local, stopped, _ = terms.vf(t, y, args)
        return Evaluation(drift, local, stopped)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del made_jump
        dt, dW = terms.contr(t0, t1)  # in the model's own time, which diffrax may have turned
        foretold, jump = leave(args.model.path, solver_state, y0, args.noise, dt, dW)
        there = self._evaluation(terms, t1, foretold, args)
        y1, standing = arrive(solver_state, y0, foretold, jump, there)
        return y1, None, {"y0": y0, "y1": y1}, standing, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        raise NotImplementedError("a walk along level sets takes a fixed grid")


class FixedSteps(diffrax.StepTo):
    """`diffrax.StepTo` without its checks at run time, whose grid `check_solve` has looked at.

    Compiled, a check is a call to the host on the first device, with its result broadcast to all:
    the one thing for which a batch spread over devices would have to communicate, and what keeps
    JAX from writing a program to its persistent cache.
    """

    def wrap(self, direction):
        return type(self)(ts=self.ts * direction)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        del terms, t0, t1, y0, dt0, args, func, error_order
        return self.ts[1], 2


ON_GRIDS = (Multistep, LevelSetEuler)

SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "bosh3": diffrax.Bosh3,
    "rk4": RK4,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "multistep": Multistep,
    "multistep2": partial(Multistep, 2),
    "level_set_euler": LevelSetEuler,
}


def default_solver(
    guides: Sequence[Guide], noise: object | None, controller: Controller | None
) -> Solver:
    """What `sample` and `likelihood` take unless told."""
    steered = any(isinstance(guide, HasTarget) for guide in guides)
    return SOLVERS[default_name(steered, noise, controller)]()


def default_name(
    steered: bool, noise: object | None = None, controller: Controller | None = None
) -> str:
    """Name of the solver to take: one evaluation a step where that serves.

    It does not with adaptive steps, nor with noise but that along the level set. And where a guide
    has a target, which is feedback from the log-density on the way (`steered`), order 2 misses it
    by less than higher orders do: the feedback is no smooth function of time.
    """
    if isinstance(noise, ItoNoise):
        return "euler"
    if controller is not None:
        return "dopri5"
    if noise is None:
        return "multistep2" if steered else "multistep"
    return "level_set_euler" if isinstance(noise, LevelSetNoise) and not steered else "dopri5"


def default_divergence(count: int, solver: Solver, size: int) -> Divergence:
    """`count` probes a step: by colours, the best of them, where one estimate has a standard error.

    `Multistep` gives it, from the scatter of the steps; other solvers need independent estimates.
    Of `size` elements there are no more colours than that.
    """
    return Coloured(min(count, size)) if isinstance(solver, Multistep) else Hutchinson(count)


def check_solve(
    x: Array, grid: Array, noise: object | None, solver: Solver, controller: Controller | None
) -> None:
    """Raise a ValueError unless these can be solved together; it says how to mend it."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating, got {x.dtype}; convert and scale it first")
    values = concrete(x)
    if values is not None and not np.isfinite(values).all():
        raise ValueError("x has NaN or infinite entries; a solve would carry them along silently")
    times = concrete(grid)
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(f"grid must be (steps + 1,) with at least one step, got {grid.shape}")
    if times is not None:
        steps = np.diff(times)
        if not ((steps > 0).all() or (steps < 0).all()):
            raise ValueError("grid must be strictly monotone: sort it and drop repeated times")
    name = type(solver).__name__
    supported = isinstance(solver, (diffrax.AbstractERK, diffrax.Euler, *ON_GRIDS))
    if not supported:
        raise ValueError(
            f"{name} is not supported: use Multistep, LevelSetEuler, Euler or an "
            "explicit Runge-Kutta method (Heun, RK4, Bosh3, Tsit5, Dopri5, ...)"
        )
    if isinstance(solver, ON_GRIDS) and controller is not None:
        raise ValueError(
            f"{name} needs a fixed grid: leave out the step-size controller, or use Tsit5()"
        )
    if isinstance(solver, LevelSetEuler) and not isinstance(noise, LevelSetNoise):
        given = "there is none" if noise is None else f"not for {type(noise).__name__}"
        raise ValueError(
            f"LevelSetEuler is for noise along the level set, and {given}: pass "
            "noise=level_set_noise(), or use Multistep() for ODEs and RK4() for other noise"
        )
    if noise is None:
        return
    if isinstance(solver, Multistep):
        raise ValueError(
            "Multistep is for ODEs, without noise: use LevelSetEuler() for level_set_noise(), "
            "RK4() for other noise"
        )
    if controller is not None:
        raise ValueError("noise needs a fixed grid: leave out the step-size controller")
    ito, euler = isinstance(noise, ItoNoise), isinstance(solver, diffrax.Euler)
    if ito and not euler:
        raise ValueError(
            f"{type(noise).__name__} is an Ito step and needs solver=Euler(), not {name}"
        )
    if euler and not ito:
        raise ValueError(
            f"{type(noise).__name__} is meant in the Stratonovich sense and Euler converges to "
            "Ito: use Heun(), RK4() or another Runge-Kutta method"
        )
