"""log-density of given data by the probability-flow ODE (PF-ODE), data to noise."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.model.field import Field, condition, log_prior
from dgjax.sampling.sample import Info, check_grid, check_prior
from dgjax.sampling.solve import solve
from dgjax.sampling.solvers import Adjoint, Controller, Progress, Solver
from dgjax.typing import Cond, Key, Sample, Scalar, as_float

__all__ = ["Likelihood", "likelihood"]


class Likelihood(NamedTuple):
    """log p(x) in nats at the model's t_min, and the latent at t_max that x came from."""

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
    """log p(x) = log p_T(x_T) + integral of div u from t_min to t_max ([DG] eq. 5).

    Args:
        model: the field.
        x: one sample at t_min, of any shape.
        grid: (steps + 1,) times of the sampler (decreasing); it is walked backwards.
        key, divergence, cond, solver, controller, adjoint, progress: as in `sample`.

    Returns:
        `Likelihood(log_density, latent, info)`; `info.log_densities` and
        `info.standard_error` are those of `log_density`.

    Raises:
        ValueError: as `sample`.
    """
    grid = as_float(grid)
    check_grid(model, grid)
    check_prior(model, grid)
    ascending = jnp.flip(grid)
    zero = jnp.zeros((), x.dtype)
    run = solve(
        model,
        x,
        ascending,
        key=key,
        log_density=zero,
        divergence=divergence,
        cond=cond,
        solver=solver,
        controller=controller,
        adjoint=adjoint,
        progress=progress,
    )
    prior = log_prior(condition(model, cond), run.x)
    info = run.info._replace(log_densities=prior - run.info.log_densities)
    return Likelihood(prior - run.log_density, run.x, info)
