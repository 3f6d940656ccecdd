"""Solvers by name, those that diffrax lacks, and the defaults for each kind of solve."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, TypeAlias

import diffrax
import numpy as np

from dgjax.guidance.guide import Guide, HasTarget
from dgjax.guidance.noise import ItoNoise, LevelSetNoise
from dgjax.model.coloured_probes import Coloured
from dgjax.model.divergence import Divergence, Hutchinson, check_count
from dgjax.sampling import level_set, multistep

__all__ = [
    "RK4",
    "SOLVERS",
    "Controller",
    "FixedSteps",
    "LevelSetEuler",
    "Multistep",
    "Progress",
    "Solver",
    "default_divergence",
    "default_name",
    "default_solver",
]

Solver: TypeAlias = diffrax.AbstractSolver
Controller: TypeAlias = diffrax.AbstractStepSizeController
Progress: TypeAlias = diffrax.AbstractProgressMeter


class RK4(diffrax.AbstractERK, diffrax.AbstractStratonovichSolver):
    """Classical fourth-order Runge-Kutta: four evaluations per step.

    For Stratonovich noise along the level set its pathwise order is 2. The error estimate of
    adaptive steps is the difference to the embedded midpoint rule, of order 2.
    """

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.array([1 / 6, -2 / 3, 1 / 3, 1 / 6]),
        c=np.array([0.5, 0.5, 1.0]),
    )
    interpolation_cls: ClassVar = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms) -> int:
        """Return the order of the method for ODEs."""
        del terms
        return 4


class Multistep(diffrax.AbstractSolver):
    """Multistep exponential integrator: one evaluation per step, for ODEs on fixed grids.

    `Multistep(1)` is DDIM (arXiv 2010.02502), `Multistep(2)` the scheme of DPM-Solver++(2M) (arXiv
    2211.01095), both under any guide. The formulas are in `dgjax.sampling.multistep`. The order
    rises from 1 over the first steps. `Multistep(3, 4)` also corrects each step when the model has
    been evaluated at its end, in the manner of UniPC (arXiv 2302.04867), at no further evaluation.
    `Multistep(3, 3, 2)` also uses the derivative of the denoised sample along the trajectory, which
    costs one product with the Jacobian a step, as one more probe does. Samples come closer to the
    end of the ODE, and likelihoods of given points to their value from 12 steps on. `Multistep(2,
    2, 2)` is more stable with guides at their bound. The network must be differentiable in time:
    one that only rounds t, or looks it up in a table, is refused. In a PyTorch network, or where a
    part of t goes another way, dgjax cannot see this, and samples are less accurate. Samples
    without a log-density gain more from twice the steps.

    Log-densities are tracked by Adams-Moulton steps, for guides that need them on the way. Those
    that `sample` and `likelihood` return are integrated afterwards from all points at once
    (`dgjax.sampling.solver_quadrature`): the error of the solver is not in them.

    Args:
        memory: evaluations that a step uses, and its order. Take 2 with a guide that has a target:
            its feedback oscillates at higher orders.
        correction: evaluations that each step is corrected with, the one at its end among them; 0
            corrects nothing. With memory + 1 the order is one higher. Samples with 8 to 16 steps
            come closer to the end of the ODE, and log-densities of given points less close.
        derivatives: number of newest evaluations whose derivative is used: all of them in a
            correction, only the newest in a step, which raises the order by one. 2 needs a
            correction with 2 evaluations or more.

    Raises:
        ValueError: if `memory` is not a positive int, or `correction` neither that nor 0, or
            `derivatives` not 0, 1 or 2, or more than a correction uses; in a solve, if derivatives
            are asked for and the network has no forward mode or no derivative in its time.
    """

    memory: int = 4
    correction: int = 0
    derivatives: int = 0
    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def __check_init__(self):
        check_count("memory", self.memory)
        if self.correction != 0:
            check_count("correction", self.correction)
        if type(self.derivatives) is not int or self.derivatives not in (0, 1, 2):
            raise ValueError(f"derivatives must be 0, 1 or 2, got {self.derivatives!r}")
        if self.derivatives > max(1, self.correction):
            raise ValueError(
                f"{self.derivatives} derivatives need a correction with as many evaluations, got "
                f"correction = {self.correction}: raise it, or take derivatives = 1"
            )

    def order(self, terms) -> int:
        """Return the order of the error of x."""
        del terms
        predicted = self.memory + min(self.derivatives, 1)
        corrected = self.correction + self.derivatives
        return min(predicted + 1, corrected) if self.correction else predicted

    @property
    def _points(self) -> multistep.Points:
        return multistep.Points(self.memory, self.correction, self.derivatives)

    def init(self, terms, t0, t1, y0, args):
        """Return an empty history."""
        del terms, t0, t1, args
        return multistep.init(self._points, y0.x, y0.log_densities)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """Evaluate at t0 and step to t1."""
        del made_jump
        evaluation, _ = terms.vf(t0, y0, args)
        dt, _ = terms.contr(t0, t1)  # in the model's own time; diffrax's may be its negative
        path = args.model.path
        y1, history = multistep.step(self._points, path, solver_state, y0, evaluation, dt)
        return y1, None, {"y0": y0, "y1": y1}, history, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """Refuse: diffrax calls this to choose a first step, and the grid gives it."""
        raise NotImplementedError("Multistep takes the steps of a fixed grid")


class LevelSetEuler(diffrax.AbstractSolver):
    """Exponential Euler with noise along the level set: one evaluation per step, on fixed grids.

    For `level_set_noise`, which is stochastic density guidance. One more evaluation is made at the
    start. The curvature of the level set comes from the step before; the formulas are in
    `dgjax.sampling.level_set`. Pathwise order 1, and the log-density is that of the point reached.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def order(self, terms) -> int:
        """Return the pathwise order of the error of the log-density."""
        del terms
        return 1

    def init(self, terms, t0, t1, y0, args):
        """Evaluate at the start."""
        del t1
        evaluation, _ = terms.vf(t0, y0, args)
        return level_set.init(evaluation)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """Step to t1, evaluate there and correct the log-densities."""
        del made_jump
        dt, dW = terms.contr(t0, t1)  # in the model's own time; diffrax's may be its negative
        path, noise = args.model.path, args.noise
        predicted, displacement = level_set.predict(path, solver_state, y0, noise, dt, dW)
        evaluation, _ = terms.vf(t1, predicted, args)
        y1, history = level_set.correct(solver_state, y0, predicted, displacement, evaluation)
        return y1, None, {"y0": y0, "y1": y1}, history, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """Refuse: diffrax calls this to choose a first step, and the grid gives it."""
        raise NotImplementedError("LevelSetEuler takes the steps of a fixed grid")


class FixedSteps(diffrax.StepTo):
    """`diffrax.StepTo` without its checks at run time: `check_solver` has seen the grid.

    A check at run time is a call from the first device to the host, whose result goes to all
    devices. For a batch spread over devices it would be the only communication, and it keeps JAX
    from writing the program to its persistent cache.
    """

    def wrap(self, direction):
        """Return the steps in diffrax's time, which always increases."""
        return type(self)(ts=self.ts * direction)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """Return the end of the first step and the index of the next one."""
        del terms, t0, t1, y0, dt0, args, func, error_order
        return self.ts[1], 2


SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "bosh3": diffrax.Bosh3,
    "rk4": RK4,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "multistep": Multistep,
    "multistep2": partial(Multistep, 2),
    "multistep_corrected": partial(Multistep, 3, 4),
    "multistep_hermite": partial(Multistep, 2, 2, 2),
    "ddim": partial(Multistep, 1),
    "dpm_solver_pp": partial(Multistep, 2),
    "level_set_euler": LevelSetEuler,
}
"""Solvers by name; `dpm_solver_pp` and `multistep2` are both `Multistep(2)`."""


def default_solver(
    guides: Sequence[Guide], noise: object | None, controller: Controller | None
) -> Solver:
    """Return the solver that `sample` and `likelihood` use when none is given.

    Args:
        guides: of the solve.
        noise: its stochastic term, or None.
        controller: its step-size controller, or None for the steps of the grid.
    """
    has_target = any(isinstance(guide, HasTarget) for guide in guides)
    return SOLVERS[default_name(has_target, noise, controller)]()


def default_name(
    has_target: bool, noise: object | None = None, controller: Controller | None = None
) -> str:
    """Return the name in `SOLVERS` of the default: one evaluation per step where that works.

    It does not work with adaptive steps, nor with Stratonovich noise other than that along the
    level set. With a target, which is feedback from the tracked log-density, order 2 misses the
    target by less than higher orders do, since the feedback is not a smooth function of time.

    Args:
        has_target: whether a guide has a target.
        noise: the stochastic term, or None.
        controller: the step-size controller, or None for the steps of the grid.
    """
    if isinstance(noise, ItoNoise):
        return "euler"
    if controller is not None:
        return "dopri5"
    if noise is None:
        return "multistep2" if has_target else "multistep"
    return "level_set_euler" if isinstance(noise, LevelSetNoise) and not has_target else "dopri5"


def default_divergence(count: int, solver: Solver, size: int) -> Divergence:
    """Return the estimator with `count` products a step that states a standard error.

    `Multistep` knows the standard error of a single estimate, from its scatter over the steps: so
    one estimate by `Coloured` probes, which have the least variance. Other solvers need several
    independent estimates.

    Args:
        count: products with the Jacobian a step.
        solver: of the solve.
        size: number of elements of a sample, which the number of colours cannot exceed.
    """
    return Coloured(min(count, size)) if isinstance(solver, Multistep) else Hutchinson(count)
