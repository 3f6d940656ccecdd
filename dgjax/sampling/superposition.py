r"""Sample several models along one trajectory, with the log-density of each.

Let models i have densities p_i, velocities u_i and scores s_i on one path. Along any drift v

    d log p_i/dt = -div u_i + <v - u_i, s_i>,                                          (A)

so that every log p_i is known on the way, and a drift may depend on it. Two drifts have names:

- `mixture`: noise commutes with mixtures, so p_t = sum_i w_i p_i,t is the noised mixture. Its
  velocity is sum_i kappa_i u_i with kappa = softmax(log w_i + log p_i): the mixture is sampled
  exactly ("OR" of Skreta et al. 2024, arXiv 2412.17762).
- `intersection`: among v = sum_i kappa_i u_i with sum_i kappa_i = 1 the one along which all log p_i
  change at one rate ("AND" there, without noise). Differences of the log p_i stay as they were.

The log-densities on the way need be good enough for kappa only. Those returned come from
`quadrature` through the points that were reached, so the error of the solver drops out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from dgjax.model.conditioned import condition
from dgjax.model.distilled import count_estimates
from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.model.faults import first, refuse, require
from dgjax.model.field import Field, log_prior_at
from dgjax.model.local import Local, evaluate
from dgjax.model.repath import repath
from dgjax.sampling.checks import check_latent
from dgjax.sampling.compiled import compile_once
from dgjax.sampling.integrate import integrate
from dgjax.sampling.scanned_stages import ScannedStages
from dgjax.sampling.solvers import RK4, Solver
from dgjax.sampling.spacetime_quadrature import Quadrature, quadrature
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, inner, register_dataclass

__all__ = ["Intersection", "Mixture", "Superposed", "intersection", "mixture", "superpose"]


class Combination(Protocol):
    """A drift from several models and their log-densities."""

    def weights(self, locals_: Sequence[Local]) -> Float[Array, " k"]:
        """Return kappa, the weights of the velocities. They add up to 1.

        Args:
            locals_: the k models at the current point; `log_density` is log p_i there, in nats.
        """
        ...

    def log_density(self, log_densities: Float[Array, "... k"]) -> Float[Array, "..."]:
        """Return the log-density of the combination from those of the models, in nats."""
        ...


@register_dataclass
@dataclass(frozen=True)
class Mixture:
    """The mixture of models. Made by `mixture`.

    Attributes:
        log_weights: (k,) logarithms of the weights, which add up to 1.
    """

    log_weights: Float[Array, " k"]

    def weights(self, locals_: Sequence[Local]) -> Float[Array, " k"]:
        """Return the posterior probability of each model.

        Raises:
            ValueError: if there are not as many weights as models.
        """
        if len(locals_) != self.log_weights.shape[0]:
            raise ValueError(
                f"{len(locals_)} models need as many weights, got {self.log_weights.shape[0]}"
            )
        found = jnp.stack([local.log_density for local in locals_])
        return jax.nn.softmax(self.log_weights.astype(found.dtype) + found)

    def log_density(self, log_densities: Float[Array, "... k"]) -> Float[Array, "..."]:
        """Return log sum_i w_i p_i."""
        weighted = self.log_weights.astype(log_densities.dtype) + log_densities
        return jax.nn.logsumexp(weighted, axis=-1)


@register_dataclass
@dataclass(frozen=True)
class Intersection:
    """Equal rates of all log-densities. Made by `intersection`."""

    def weights(self, locals_: Sequence[Local]) -> Float[Array, " k"]:
        """Return kappa, the closest to 1/k for which all log-densities change at one rate."""
        sigma, count = locals_[0].sigma, len(locals_)
        scores = sigma * jnp.stack([local.score.reshape(-1) for local in locals_])
        mean = jnp.mean(scores, 0)
        # With v of equal weights, in units of g^2/(2 sigma^2): sigma^2 Lap log p + <e_i - e, e_i>.
        curvature = jnp.stack([sigma**2 * local.laplacian for local in locals_])
        rates = curvature + jnp.sum((scores - mean) * scores, -1)
        centred, apart = scores - mean, rates - jnp.mean(rates)
        gram = jnp.matmul(centred, centred.T, precision="highest")
        # The vector of ones is the kernel of the Gram matrix, and `apart` is perpendicular to it.
        size = jnp.trace(gram)
        size = jnp.where(size > 0, size, 1)
        floor = size * (1 / count + jnp.finfo(gram.dtype).eps * jnp.eye(count))
        return 1 / count + jnp.linalg.solve(gram + floor, apart)

    def log_density(self, log_densities: Float[Array, "... k"]) -> Float[Array, "..."]:
        """Return the mean of the log-densities. It is no normalized density."""
        return jnp.mean(log_densities, axis=-1)


class Superposed(NamedTuple):
    """A sample of several models, with the log-density of each.

    Attributes:
        x: the sample at the end of the grid.
        log_density: of the combination, in nats.
        log_densities: (k,) log p_t(x) of each model, in nats.
        standard_errors: (k,) of `log_densities` from the probes, in nats; infinite if unknown.
        solver_errors: (k,) sizes of the errors of `log_densities` due to the grid, in nats.
        ts: (n+1,) times.
        xs: (n+1, *shape) the trajectory.
        course: (n+1, k) log-densities along it, in nats.
        fault: 0, or the code of the first check that failed while JAX was tracing, a value of
            `Fault`; the log-densities are then NaN.
    """

    x: Sample
    log_density: Scalar
    log_densities: Float[Array, " k"]
    standard_errors: Float[Array, " k"]
    solver_errors: Float[Array, " k"]
    ts: Float[Array, " n+1"]
    xs: Float[Array, "n+1 ..."]
    course: Float[Array, "n+1 k"]
    fault: Int[Array, ""]


def mixture(weights: ArrayLike) -> Mixture:
    """Make the combination that samples the mixture of several models exactly.

    Args:
        weights: (k,) positive numbers, which are divided by their sum.

    Returns:
        A combination for `superpose`.

    Raises:
        ValueError: if the weights are not (k,) or one is not positive and finite.
    """
    weights = as_float(weights)
    if weights.ndim != 1:
        raise ValueError(f"weights must be (k,), one for each model, got {weights.shape}")
    good = lambda w: (w > 0) & jnp.isfinite(w)
    weights = require("weights", weights, "be positive and finite", good)
    return Mixture(jnp.log(weights) - jnp.log(jnp.sum(weights)))


def intersection() -> Intersection:
    """Make the combination that keeps differences of log-density between models constant.

    Returns:
        A combination for `superpose`.
    """
    return Intersection()


def superpose(
    models: Sequence[Field],
    x: Sample,
    grid: Float[Array, " n+1"],
    combination: Combination,
    *,
    key: Key,
    conds: Sequence[Cond] | None = None,
    divergence: Divergence = Hutchinson(),
    solver: Solver | None = None,
) -> Superposed:
    """Sample several models along one trajectory, with the log-density of each.

    A step costs the evaluations of the solver and two more for the log-densities, of every model.

    Args:
        models: k fields of samples of one shape. They are taken on the path of the first, whose
            noise range must be within that of the others.
        x: one latent, at `grid[0]`, which is t_max of the first model.
        grid: (n+1,) decreasing times on the path of the first model, from its t_max, as from
            `grid_logsnr`.
        combination: the drift, as from `mixture` or `intersection`.
        key: for the probes.
        conds: a condition for each model.
        divergence: trace estimator.
        solver: an explicit Runge-Kutta method; `RK4()` by default.

    Returns:
        `Superposed` at time `grid[-1]`.

    Raises:
        ValueError: if there is no model, numbers of models and conditions differ, a weight is
            missing, the noise ranges do not fit, or x or the grid does not suit a model.
    """
    x, grid = jnp.asarray(x), as_float(grid)
    if not models:
        raise ValueError("superpose needs at least one model")
    conds = [None] * len(models) if conds is None else list(conds)
    if len(conds) != len(models):
        raise ValueError(f"{len(models)} models need as many conditions, got {len(conds)}")
    path = models[0].path
    on_path = [models[0], *(repath(model, path) for model in models[1:])]
    fields = tuple(condition(model, cond) for model, cond in zip(on_path, conds, strict=True))
    # At t_max of the first model, where the priors of all are known: the others may go further.
    fault = first(
        check_latent(fields[0], x, grid, log_density=None),
        *(check_latent(field, x, grid, log_density=0.0) for field in fields[1:]),
    )
    solver = RK4() if solver is None else solver
    if not isinstance(solver, diffrax.AbstractERK):
        raise ValueError(
            f"superpose takes explicit Runge-Kutta methods, such as RK4(), got {solver!r}"
        )
    return _superpose(fields, x, grid, combination, key, divergence, solver, fault)


class _State(NamedTuple):
    x: Sample
    log_densities: tuple[Float[Array, " m"], ...]


class _Together(diffrax.AbstractTerm):
    """The rate of `_State` in time."""

    grid: Array
    divergence: Divergence
    key: Key

    def vf(self, t, y, args):
        fields, combination = args
        # One probe for the two half steps about a grid point, as in `sample`.
        step = jnp.sum(0.5 * (self.grid[1:] + self.grid[:-1]) > t)
        locals_ = _evaluate(fields, t, y, self.divergence, jax.random.fold_in(self.key, step))
        kappa = combination.weights(locals_)
        drift = sum(k * local.velocity for k, local in zip(kappa, locals_, strict=True))
        rates = tuple(
            inner(drift - local.velocity, local.score) - local.divergences for local in locals_
        )
        return _State(drift, rates)

    def contr(self, t0, t1, **kwargs):
        del kwargs
        return t1 - t0

    def prod(self, vf, control):
        return jax.tree.map(lambda a: (a * control).astype(a.dtype), vf)


def _evaluate(fields, t, y: _State, divergence, key) -> list[Local]:
    # The probes of all models are the same, so that they cancel in differences.
    return [
        evaluate(field, t, y.x, divergence=divergence, key=key, log_densities=log_densities)
        for field, log_densities in zip(fields, y.log_densities, strict=True)
    ]


@compile_once
def _superpose(fields, x, grid, combination, key, divergence, solver, fault) -> Superposed:
    way, end = jax.random.split(key)
    count = count_estimates(divergence, x, key).shape[0]
    starts = [log_prior_at(field, grid[0], x) for field in fields]
    state = _State(x, tuple(jnp.full(count, start, x.dtype) for start in starts))
    term = _Together(grid, divergence, way)
    save: Any = lambda t, y, args: y.x
    found = integrate(term, ScannedStages(solver), state, grid, (fields, combination), save)
    measured: list[Quadrature] = [
        quadrature(field, grid, found.saved, key=end, divergence=divergence, log_density=start)
        for field, start in zip(fields, starts, strict=True)
    ]
    fault = first(fault, *(run.fault for run in measured))
    column = lambda name: refuse(fault, jnp.stack([getattr(r, name) for r in measured], -1))
    course = column("log_density")
    return Superposed(
        x=found.end.x,
        log_density=refuse(fault, combination.log_density(course[-1])),
        log_densities=course[-1],
        standard_errors=column("standard_error")[-1],
        solver_errors=column("solver_error")[-1],
        ts=grid,
        xs=found.saved,
        course=course,
        fault=fault,
    )
