"""Results of a solve: the sample, its log-density, diagnostics and a trajectory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from dgjax.guidance.guide import Guide, HasTarget
from dgjax.model.divergence import Divergence
from dgjax.model.faults import Code, as_code, refuse
from dgjax.model.field import Field
from dgjax.model.paths import logsnr
from dgjax.sampling.state import State
from dgjax.typing import Sample, Scalar, safe_sqrt

__all__ = ["Errors", "Info", "Sampled", "Trajectory", "stated_error", "summarize"]


class Info(NamedTuple):
    """Diagnostics of one solve.

    Attributes:
        standard_error: of `log_density` from the probes, in nats. For a single estimate it is
            infinite, which means unknown, unless the solver is `Multistep`: that knows it to about
            a third, from the scatter over at least 5 grid points. With few steps the rate is no
            smooth curve between its points; the scatter is then too large, and so is
            `solver_error`: take more steps, not more probes.
        solver_error: estimate of the size of the error of `log_density` that is due to the grid, in
            nats. It compares two quadratures through the same evaluations, costs none, and is
            mostly several times too large. Infinite, which means unknown, for `Euler`, thus with
            every Ito noise, for Runge-Kutta methods without a stage at the end of the step, and
            with `Untracked`.
        bound_share: share of the log-SNR range on which a guide was stopped by its bound, in
            [0, 1].
        least_score: smallest |sigma s| over all steps, without units. Runge-Kutta methods take the
            root mean square within a step, `Multistep` and `LevelSetEuler` the value at its start.
        target_met: whether every guide with a target reached it, its distance and the stated error
            of the log-density together being within the tolerance (see `stated_error`). None if no
            guide has a target.
        finite: whether x and its log-density are finite.
        log_densities: (m,) final log-density by each of m divergence estimates, in nats.
        fault: 0, or the code of the first check that failed while JAX was tracing, a value of
            `Fault`. The log-densities and their errors are then NaN.
        latent_norm: |x|/(sigma sqrt(D)) at the noisiest end of the solve. It is about 1 for a
            latent drawn from the prior at t_max. A value near 1/sigma(t_max) means that the latent
            was drawn from N(0, I) on a path whose noise has another scale.
    """

    standard_error: Scalar
    solver_error: Scalar
    bound_share: Scalar
    least_score: Scalar
    target_met: Scalar | None
    finite: Scalar
    log_densities: Float[Array, " m"]
    fault: Int[Array, ""]
    latent_norm: Scalar


class Errors(NamedTuple):
    """Errors of a log-density that a solver knows, in nats.

    Attributes:
        scatter: standard error from the scatter of the probes in time; infinite if unknown.
        solver: estimate of the size of the solver's error; infinite if unknown.
    """

    scatter: ArrayLike
    solver: ArrayLike


class Trajectory(NamedTuple):
    """A solve at every grid point. Pass the class itself as `save`.

    Attributes:
        t: (n+1,) times.
        x: (n+1, *shape) samples.
        log_density: (n+1,) log p_t(x) in nats.
    """

    t: Scalar
    x: Sample
    log_density: Scalar


class Sampled(NamedTuple):
    """A sample with its log-density.

    Attributes:
        x: the sample at the end of the grid, of the shape of the latent.
        log_density: log p_t(x) there, in nats, by the model's own marginal.
        info: diagnostics.
        trajectory: what `save` returned, stacked over the grid points; None without `save`.
    """

    x: Sample
    log_density: Scalar
    info: Info
    trajectory: Any


def stated_error(standard_error: Scalar, solver_error: Scalar) -> Scalar:
    """Add the errors of a log-density that a solve states, in nats.

    Args:
        standard_error: from the probes; infinite if unknown, and so is the sum.
        solver_error: from the grid. Solvers that do not know it say infinite; then it is left out,
            and whether the grid is fine enough is for the user to judge.
    """
    return standard_error + jnp.where(jnp.isinf(solver_error), 0, solver_error)


def summarize(
    model: Field,
    grid: Float[Array, " n+1"],
    guides: Sequence[Guide],
    divergence: Divergence,
    end: State,
    score_integrals: Float[Array, " n+1"],
    errors: Errors,
    fault: Code,
    start: Sample,
) -> Info:
    """Compute the diagnostics of a solve.

    Args:
        model: the field.
        grid: (n+1,) times of the solve.
        guides: of the solve.
        divergence: its trace estimator.
        end: the final state.
        score_integrals: (n+1,) `State.score_integral` at every grid point.
        errors: of the final log-densities, as far as the solver knows them.
        fault: the code of the checks of the solve.
        start: the sample at `grid[0]`.

    Returns:
        `Info`.
    """
    levels = jax.vmap(lambda t: logsnr(model.path, t))(grid)
    steps = jnp.abs(jnp.diff(levels)).astype(score_integrals.dtype)
    # Above 1 by the error of the quadrature only.
    share = jnp.minimum(jnp.abs(end.bound_integral) / jnp.sum(steps), 1)
    score = safe_sqrt(jnp.maximum(jnp.abs(jnp.diff(score_integrals)) / steps, 0))
    log_density = jnp.mean(end.log_densities)
    standard_error = divergence.standard_error(end.log_densities, errors.scatter)
    solver_error = jnp.asarray(errors.solver, end.x.dtype)
    error = stated_error(standard_error, solver_error)
    met = [g.met(log_density, error, end.x.size) for g in guides if isinstance(g, HasTarget)]
    return Info(
        standard_error=refuse(fault, standard_error),
        solver_error=refuse(fault, solver_error),
        bound_share=share,
        least_score=jnp.min(score),
        target_met=jnp.all(jnp.stack(met)) if met else None,
        finite=jnp.isfinite(log_density) & jnp.all(jnp.isfinite(end.x)),
        log_densities=end.log_densities,
        fault=as_code(fault),
        latent_norm=_latent_norm(model, grid, start, end.x),
    )


def _latent_norm(model: Field, grid: Float[Array, " n+1"], start: Sample, end: Sample) -> Scalar:
    noisiest = jnp.where(grid[0] > grid[-1], start, end)
    sigma = model.path.sigma(jnp.maximum(grid[0], grid[-1])).astype(end.dtype)
    return jnp.sqrt(jnp.mean(noisiest**2)) / sigma
