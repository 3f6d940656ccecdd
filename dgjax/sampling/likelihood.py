"""Log-density of given data by the probability-flow ODE, from data to noise."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.model.faults import first
from dgjax.model.field import Field, log_prior
from dgjax.sampling.adjoints import Adjoint
from dgjax.sampling.checks import check_grid, check_prior_time, check_sample
from dgjax.sampling.results import Info
from dgjax.sampling.solve import SolveOptions, solve
from dgjax.sampling.solvers import Controller, Progress, Solver
from dgjax.sampling.traced_numbers import check_model
from dgjax.typing import Cond, Key, Sample, Scalar, as_float

__all__ = ["Likelihood", "likelihood"]


class Likelihood(NamedTuple):
    """Log-density of a sample, and its latent.

    Attributes:
        log_density: log p(x) at the model's t_min, in nats.
        latent: the point at t_max to which the probability-flow ODE carries x.
        info: diagnostics; `log_densities` and `standard_error` are those of `log_density`.
    """

    log_density: Scalar
    latent: Sample
    info: Info


def likelihood(
    model: Field,
    x: Sample,
    grid: Float[Array, " n+1"],
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    solver: Solver | None = None,
    controller: Controller | None = None,
    adjoint: Adjoint | None = None,
    progress: Progress | None = None,
) -> Likelihood:
    """Measure the log-density of one sample.

    log p(x) = log p_T(x_T) + integral of div u dt from t_min to t_max along the probability-flow
    ODE (Density Guidance, arXiv 2502.05807, eq. 5).

    Args:
        model: the field.
        x: one sample at t_min, of any shape.
        grid: (steps + 1,) decreasing times, the same as for `sample`; they are used in reverse.
        key: for the probes.
        divergence: trace estimator.
        cond: condition of the model; the log-density is then log p(x | cond).
        solver: as in `sample`.
        controller: as in `sample`.
        adjoint: as in `sample`.
        progress: as in `sample`.

    Returns:
        `Likelihood(log_density, latent, info)`. Where JAX is tracing, a check of numbers cannot
        raise: log_density is then NaN and `info.fault` names the check.

    Raises:
        ValueError: if x is not of the model's shape, not floating or not finite, the grid does not
            decrease from t_max within the model's range, or solver and controller do not go
            together.
    """
    x, grid = jnp.asarray(x), as_float(grid)
    fault = first(
        check_model(model),
        check_grid(model, grid),
        check_sample(model, x),
        check_prior_time(model, grid[0], "grid"),
    )
    model = condition(model, cond)
    options = SolveOptions(
        divergence=divergence,
        solver=solver,
        controller=controller,
        adjoint=adjoint,
        progress=progress,
    )
    zero = jnp.zeros((), x.dtype)
    run = solve(model, x, jnp.flip(grid), key=key, log_density=zero, options=options, fault=fault)
    prior = log_prior(model, run.x)
    info = run.info._replace(log_densities=prior - run.info.log_densities)
    return Likelihood(prior - run.log_density, run.x, info)
