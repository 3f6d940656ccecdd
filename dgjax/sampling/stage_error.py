r"""Error of the log-density of a Runge-Kutta step, from the stages that the step evaluated.

**Formulas.** By identity (C) the gain of log p between two points is the same along every curve
that joins them. A step evaluates the model at stages X_j on its way, and tracks the gain by the
weights of its own rule. The gain along the polynomial in u = w^(1/7) through some of the stages,
and from the last of them straight to the point x1 that the step reached, is

    integral of <sigma s/w, dy> + H - D log(alpha1/alpha0) + <s, x1 - X> at the last stage,

with y = x/alpha and H = sigma^2 (Lap log p + |s|^2) d log w, which is integrated by the rule of the
same stages. The difference of the two is the error of the step. Errors of the steps add up, and x1
is a given point here: the error of x is no error of the log-density.

It holds with Stratonovich noise as well. The increment of the Brownian motion is fixed within a
step, so a step follows a smooth curve.

**Noise of the probes.** It is in H only. The stages in each half of a step share a probe, and the
two rules give nearly the same weight to each half: most of the noise drops out.

**Stages.** Those nearest to the points of the Gauss-Lobatto rule with four points, of equal times
the last one. Methods with three such stages or fewer have the order of the rule that they are
compared with, and both may err alike: their error is taken twice.
"""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.polynomial import legendre

from dgjax.sampling.error_sums import ErrorSums
from dgjax.sampling.interpolation import GAUSS_POINTS, RHO, lagrange, u_of_logsnr
from dgjax.sampling.state import Stage, State
from dgjax.sampling.wrapped_solver import WrappedSolver, stage_times
from dgjax.typing import Scalar, inner

__all__ = ["StageErrors", "knows_error"]

LOBATTO = (0.0, 0.5 - 0.1 * 5**0.5, 0.5 + 0.1 * 5**0.5, 1.0)


def knows_error(solver: diffrax.AbstractSolver) -> bool:
    """Return whether a solver is an explicit Runge-Kutta method with a stage at the end of a step.

    Args:
        solver: of a solve.
    """
    if not isinstance(solver, diffrax.AbstractERK):
        return False
    return isinstance(solver.tableau, diffrax.ButcherTableau) and bool(solver.tableau.c[-1] == 1)


class _Inner(NamedTuple):
    """The state of the solver that is measured, and the sums so far."""

    solver: Any
    errors: ErrorSums


class StageErrors(WrappedSolver):
    """A Runge-Kutta method that adds up the errors of its log-density in `solver_state.errors`.

    Steps and their error estimates are those of the method alone: a step-size controller sees no
    difference.

    Args:
        solver: for which `knows_error` is true.
    """

    @property
    def scan_kind(self):
        """Kind of the loop over stages, which adjoints for forward mode choose."""
        return self.solver.scan_kind

    def init(self, terms, t0, t1, y0, args):
        """Return the state of the method, and empty sums."""
        inner = self.solver.init(terms, t0, t1, _with_stage(y0), args)
        return _Inner(inner, ErrorSums.zero(y0.x))

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """Make a step of the method and add its error."""
        y1, y_error, dense, inner, result = self.solver.step(
            terms, t0, t1, _with_stage(y0), args, solver_state.solver, made_jump
        )
        dt, _ = terms.contr(t0, t1)  # in the model's own time; diffrax's may be its negative
        error = _step_error(self.tableau, y0, y1, dense["k"], dt)
        dense = {"y0": y0, "y1": _without(y1), "k": _without(dense["k"])}
        state = _Inner(inner, solver_state.errors.add(error))
        y_error = None if y_error is None else _without(y_error)  # there is none on fixed grids
        return _without(y1), y_error, dense, state, result


def _with_stage(y: State) -> State:
    zero = jnp.zeros((), y.x.dtype)
    return y._replace(stage=Stage(jnp.zeros_like(y.x), zero, zero, zero, zero))


def _without(y: State) -> State:
    return y._replace(stage=None)


def _step_error(tableau: diffrax.ButcherTableau, y0: State, y1: State, k: State, dt) -> Scalar:
    """Return the gain that the step tracked minus the gain along the curve, in nats.

    `k` are the increments of every stage.
    """
    chosen, places, weights = _choose(tableau)
    dtype, count = y0.x.dtype, len(chosen)
    assert k.stage is not None
    stage = jax.tree.map(lambda a: a[chosen] / dt, k.stage)
    heat = jnp.asarray(weights, dtype) @ k.stage.heat[chosen]
    xs = y0.x[None] + jnp.tensordot(jnp.asarray(places, dtype), k.x, 1, precision="highest")
    shaped = lambda a: a.reshape(count, *[1] * y0.x.ndim)
    ys = xs / shaped(stage.alpha)
    noises = shaped(stage.sigma) * stage.score
    along = _curve_integral(u_of_logsnr(stage.logsnr).astype(dtype), noises, ys)
    volume = y0.x.size * jnp.log(stage.alpha[-1] / stage.alpha[0])
    curve = along + heat - volume + inner(stage.score[-1], y1.x - xs[-1])
    error = jnp.mean(y1.log_densities - y0.log_densities) - curve
    return 2 * error if count < len(LOBATTO) else error


def _choose(tableau: diffrax.ButcherTableau) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of n chosen stages, where they lie, and the weights of their rule.

    The point of a stage is that of the start plus its row of (n, stages) times the increments.
    """
    times, rows = stage_times(tableau)
    distances = np.abs(times[None, ::-1] - np.array(LOBATTO)[:, None])
    chosen = np.unique(len(times) - 1 - np.argmin(np.round(distances, 9), 1))
    powers = np.arange(len(chosen))
    rule = np.linalg.solve(times[chosen][None] ** powers[:, None], 1 / (powers + 1))
    return chosen, rows[chosen], rule


def _curve_integral(us: Array, noises: Array, ys: Array) -> Scalar:
    """Integrate <sigma s/w, dy> along the polynomials in u through all points.

    `noises` are sigma s, which is smoother than s, at `us`.
    """
    gauss, masses = (jnp.asarray(a, us.dtype) for a in legendre.leggauss(GAUSS_POINTS))
    half = 0.5 * (us[-1] - us[0])
    u = 0.5 * (us[0] + us[-1]) + half * gauss
    basis = lambda u: lagrange(us, jnp.ones(us.shape, bool), u)
    values, slopes = jax.jvp(basis, (u,), (jnp.ones_like(u),))
    weights = (values * (half * masses / u**RHO)[:, None]).T @ slopes
    flat = lambda a: a.reshape(us.shape[0], -1)
    # sums of the slopes are 0, so a shift of y changes nothing but the rounding
    products = jnp.matmul(flat(noises), flat(ys - ys[-1:]).T, precision="highest")
    return jnp.sum(weights * products)
