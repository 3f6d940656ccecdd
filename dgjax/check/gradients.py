"""Checks of derivatives: of the log-density at a point and at a mode."""

import jax
import numpy as np

from dgjax.check.finding import Finding, judge, largest, relative
from dgjax.check.mixture_solves import W_MIN, latents_of, model_of
from dgjax.check.oracle import BATCH, make_mixture
from dgjax.guidance.density import density_guidance
from dgjax.model.divergence import Exact
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.sample import sample
from dgjax.sampling.time_grids import grid_uniform
from dgjax.typing import as_float

__all__ = ["gradient_at_mode", "likelihood_gradient"]

STEPS = 32


def likelihood_gradient() -> Finding:
    """Check that the gradient of `likelihood` is the true score, by SciPy."""
    mixture = make_mixture()
    model, truth = model_of(mixture), mixture.noisy(1.0, W_MIN)
    grid, key = grid_uniform(model, STEPS), jax.random.key(0)
    x = truth.draw(np.random.default_rng(6), BATCH)

    def value(x):
        return likelihood(model, x, grid, key=key, divergence=Exact()).log_density

    gradient = jax.jit(jax.vmap(jax.grad(value)))(as_float(x))
    error = relative(gradient, truth.derivatives(x)[0])
    # 3.2e-4, from the solver.
    return judge("gradient of the log-density, against the score: relative error", error, 2e-3)


def gradient_at_mode() -> Finding:
    """Check that a Gaussian's log-density is stationary at its mode, along a guided solve."""
    mixture = make_mixture(same=True)
    model = model_of(mixture)
    grid, key = grid_uniform(model, STEPS), jax.random.key(0)
    guides = (density_guidance(0.6),)

    def value(x):
        return sample(model, x, grid, key=key, guides=guides, divergence=Exact()).log_density

    gradient = jax.jit(jax.grad(value))
    away = largest(np.asarray(gradient(latents_of(mixture)[0])))
    there = largest(np.asarray(gradient(as_float(mixture.means[0]))))
    # 1.3e-7. With a floor that does not protect derivatives: NaN.
    return judge("gradient at a mode, where the score is 0, over one elsewhere", there / away, 1e-5)
