"""Checks of the unguided dynamics and of noise; q = 1/2 is density guidance without effect."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dgjax.check.finding import Finding, judge, largest, rms
from dgjax.check.mixture_solves import (
    STEPS,
    W_MIN,
    NoiseScales,
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
    """Encode samples of a Gaussian, a mixture of equal parts so that compiled code is reused."""
    mixture = make_mixture(same=True)
    model = model_of(mixture)
    x = as_float(mixture.noisy(1.0, W_MIN).draw(np.random.default_rng(4), BATCH))
    return mixture, model, x, _likelihoods(model, x, grid_uniform(model, 2 * STEPS))


def gaussian_likelihood() -> Finding:
    """Check the likelihood by the probability-flow ODE against SciPy."""
    mixture, model, x, out = _encoded()
    error = largest(np.asarray(out.log_density) - true_log_density(mixture, model, x))
    # 9e-5, and 6e-5 in float64: the error of the solver. With Heun 0.2, with TF32 0.04.
    return judge("likelihood of a Gaussian, against SciPy: nats", error, 5e-4)


def round_trip() -> Finding:
    """Check that data to noise to data is the identity."""
    _, model, x, out = _encoded()
    back = np.asarray(solve(model, out.latent, density_guidance(0.5)).x)
    # 1.3e-6, and 1e-7 in float64.
    return judge("data to noise to data: largest error", largest(back - np.asarray(x)), 1e-5)


def heun_order() -> Finding:
    """Check that the tracked log-density converges at order 2 with Heun."""
    guide = density_guidance(0.5)
    coarse, fine = (
        rms(tracked(guide, steps=n, solver="heun", noise=None)[0]) for n in (2 * STEPS, 4 * STEPS)
    )
    # 2.03, from 0.17 and 0.042 nats: far above the error of float32, 1e-4.
    return judge("Heun: order of convergence", np.log2(coarse / fine), 2.2, low=1.8)


def level_set() -> Finding:
    """Check the tracked log-density with noise along the level set, by Stratonovich RK4."""
    noise = NoiseScales(level_set=1.0)
    error = rms(tracked(density_guidance(0.5), steps=8 * STEPS, noise=noise)[0])
    # 0.013 to 0.016, depending on the latents: the error of the solver. Heun, of order 1: over 1.
    return judge("noise along the level set, tracked - true: RMS nats", error, 0.05)


@jax.jit
def _quadratures(model: Field, t: Array, x: Array) -> Array:
    key = jax.random.key(0)
    along = jax.vmap(lambda t, x: quadrature(model, t, x, key=key, divergence=Exact(), batch=64))
    return along(t, x).log_density[:, -1]


def reverse_sde_quadrature() -> Finding:
    """Check the quadrature along a trajectory of the reverse SDE against SciPy, at its end."""
    mixture = make_mixture()
    model = model_of(mixture)
    noise = NoiseScales(reverse=1.0)
    solution = solve(model, latents_of(mixture), density_guidance(0.5), noise=noise)
    # Consecutive trajectories share a point.
    first, *rest = solution.trajectories
    t = jnp.concatenate([first.t, *(r.t[:, 1:] for r in rest)], 1)
    x = jnp.concatenate([first.x, *(r.x[:, 1:] for r in rest)], 1)
    error = np.asarray(_quadratures(model, t, x)) - true_log_density(mixture, model, solution.x)
    claim = "quadrature along the reverse SDE: nats per dimension"
    # 4e-5 to 3.7e-4, depending on the latents, of which 1e-4 is the error of the method. A rule
    # with nodes at the points of the trajectory: 0.23.
    return judge(claim, largest(error) / SIZE, 1e-3)
