"""Claims on the dynamics that guides build on: at q = 1/2 density guidance changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dgjax.check.finding import Finding, judge, largest, rms
from dgjax.check.mixture_solves import (
    STEPS,
    W_MIN,
    Heights,
    latents_of,
    model_of,
    solve,
    tracked,
    true_log_density,
)
from dgjax.check.oracle import BATCH, SIZE, Mixture, make_mixture
from dgjax.guidance.density import density_guidance
from dgjax.model.divergence import Exact
from dgjax.model.field import Field
from dgjax.sampling.likelihood import Likelihood, likelihood
from dgjax.sampling.solvers import SOLVERS
from dgjax.sampling.spacetime_quadrature import quadrature
from dgjax.sampling.time_grids import grid_uniform
from dgjax.typing import as_float

__all__ = [
    "gaussian_likelihood",
    "heun_order",
    "level_set",
    "reverse_sde_quadrature",
    "round_trip",
]


@jax.jit
def _likelihoods(model: Field, x: Array, grid: Array) -> Likelihood:
    key, solver = jax.random.key(0), SOLVERS["rk4"]()
    return jax.vmap(
        lambda x: likelihood(model, x, grid, key=key, divergence=Exact(), solver=solver)
    )(x)


def _encoded() -> tuple[Mixture, Field, Array, Likelihood]:
    """A Gaussian, written as a mixture of equal parts so that it compiles nothing new."""
    mixture = make_mixture(same=True)
    model = model_of(mixture)
    x = as_float(mixture.noisy(1.0, W_MIN).draw(np.random.default_rng(4), BATCH))
    return mixture, model, x, _likelihoods(model, x, grid_uniform(model, 2 * STEPS))


def gaussian_likelihood() -> Finding:
    """The likelihood by PF-ODE is SciPy's."""
    mixture, model, x, out = _encoded()
    error = largest(np.asarray(out.log_density) - true_log_density(mixture, model, x))
    # 9e-5, and 6e-5 in float64: the solver's own. By Heun it is 0.2, with TF32 0.04.
    return judge("likelihood of a Gaussian, against SciPy: nats", error, 5e-4)


def round_trip() -> Finding:
    """Data -> noise -> data is the identity."""
    _, model, x, out = _encoded()
    back = np.asarray(solve(model, out.latent, density_guidance(0.5)).x)
    # 1.3e-6, and 1e-7 in float64.
    return judge("data to noise to data: largest error", largest(back - np.asarray(x)), 1e-5)


def heun_order() -> Finding:
    """The tracked log-density converges at Heun's order."""
    guide = density_guidance(0.5)
    coarse, fine = (
        rms(tracked(guide, steps=n, solver="heun", heights=None)[0]) for n in (2 * STEPS, 4 * STEPS)
    )
    # 2.03, from 0.17 and 0.042 nats: far above what float32 leaves, 1e-4.
    return judge("Heun: order of convergence", np.log2(coarse / fine), 2.2, low=1.8)


def level_set() -> Finding:
    """Noise along the level set leaves the tracked log-density true, by Stratonovich RK4."""
    heights = Heights(level_set=1.0)
    error = rms(tracked(density_guidance(0.5), steps=8 * STEPS, heights=heights)[0])
    # 0.013 to 0.016 by the latents, the solver's own. Heun, of order 1, leaves over 1.
    return judge("noise along the level set, tracked - true: RMS nats", error, 0.05)


@jax.jit
def _quadratures(model: Field, t: Array, x: Array) -> Array:
    key = jax.random.key(0)
    along = jax.vmap(lambda t, x: quadrature(model, t, x, key=key, divergence=Exact(), batch=64))
    return along(t, x).log_density[:, -1]


def reverse_sde_quadrature() -> Finding:
    """Quadrature along the reverse SDE gives the log-density of its end, by SciPy."""
    mixture = make_mixture()
    model = model_of(mixture)
    walk = solve(model, latents_of(mixture), density_guidance(0.5), heights=Heights(reverse=1.0))
    # Pieces share the points where they meet.
    first, *rest = walk.trajectories
    t = jnp.concatenate([first.t, *(r.t[:, 1:] for r in rest)], 1)
    x = jnp.concatenate([first.x, *(r.x[:, 1:] for r in rest)], 1)
    error = np.asarray(_quadratures(model, t, x)) - true_log_density(mixture, model, walk.x)
    claim = "quadrature along the reverse SDE: nats per dimension"
    # 4e-5 to 3.7e-4 by the latents, of which the method's own is 1e-4. A rule with nodes at the
    # points leaves 0.23.
    return judge(claim, largest(error) / SIZE, 1e-3)
