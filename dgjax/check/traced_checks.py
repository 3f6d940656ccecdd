"""Checks of numbers under `jit`: those that do not fit give no log-density, and are named."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dgjax.check.finding import Finding, judge
from dgjax.check.mixture_solves import latents_of, model_of
from dgjax.check.oracle import make_mixture
from dgjax.guidance.density import density_guidance
from dgjax.model.faults import Fault
from dgjax.model.field import Field
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.sample import sample
from dgjax.sampling.spacetime_quadrature import quadrature
from dgjax.sampling.time_grids import grid_uniform
from dgjax.typing import Sample, as_float

__all__ = ["fitting_numbers", "unfitting_numbers"]

STEPS = 4


@jax.jit
def _solve(model: Field, x: Sample, grid: Array, q: Array) -> tuple[Array, Array]:
    """Return (3,) log-densities by `sample`, `likelihood` and `quadrature`, and their faults."""
    key, points = jax.random.key(0), jnp.broadcast_to(x, (STEPS + 1, *x.shape))
    guided = sample(model, x, grid, key=key, guides=(density_guidance(q),))
    measured = likelihood(model, x, grid, key=key)
    along = quadrature(model, grid, points, key=key, nodes=1)
    log_densities = guided.log_density, measured.log_density, along.log_density[-1]
    faults = guided.info.fault, measured.info.fault, along.fault
    return jnp.stack(log_densities), jnp.stack(faults)


def _setting() -> tuple[Field, Array, Array]:
    """Make a model, a latent of it and a grid."""
    mixture = make_mixture()
    model = model_of(mixture)
    return model, latents_of(mixture)[0], grid_uniform(model, STEPS)


def fitting_numbers() -> Finding:
    """Check that numbers that fit have no fault."""
    log_densities, faults = _solve(*_setting(), as_float(0.6))
    wrong = np.sum(~np.isfinite(log_densities) | (np.asarray(faults) != Fault.NONE))
    return judge("fitting numbers under jit: results refused, of 3", wrong, 0)


def unfitting_numbers() -> Finding:
    """Check that numbers that do not fit give NaN and the name of the fault."""
    model, x, grid = _setting()
    low, high = model.t_min, model.t_max
    everywhere = lambda fault: [fault] * 3
    cases = [
        (x, jnp.linspace(0.9 * high, low, STEPS + 1), 0.6, everywhere(Fault.NOT_AT_T_MAX)),
        (x, jnp.linspace(high, 0.9 * low, STEPS + 1), 0.6, everywhere(Fault.OUT_OF_RANGE)),
        (x.at[0].set(jnp.nan), grid, 0.6, everywhere(Fault.NOT_FINITE)),
        (x, grid, 1.5, [Fault.GUIDE_NUMBER]),  # only `sample` has a guide
    ]
    wrong = 0
    for x, grid, q, expected in cases:
        log_densities, faults = (a[: len(expected)] for a in _solve(model, x, grid, as_float(q)))
        wrong += int(np.sum(~np.isnan(log_densities) | (np.asarray(faults) != expected)))
    return judge("unfitting numbers under jit: results not refused, of 10", wrong, 0)
