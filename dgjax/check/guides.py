"""Checks of guides: the log-density tracked along the guided drift is that of the end point."""

import jax
import numpy as np
from jaxtyping import Array

from dgjax.check.finding import Finding, judge, largest
from dgjax.check.mixture_solves import STEPS, W_MIN, latents_of, model_of, traces, tracked
from dgjax.check.oracle import make_mixture
from dgjax.guidance.density import density_guidance
from dgjax.guidance.target import Profile, target_guidance
from dgjax.model.divergence import Exact
from dgjax.model.field import Field
from dgjax.sampling.shooting import pilot
from dgjax.sampling.time_grids import grid_uniform

__all__ = ["bound_reported", "closed_loop", "high_density", "low_density", "one_compilation"]


def low_density() -> Finding:
    """Check the tracked log-density where guidance lowers it."""
    error = largest(tracked(density_guidance(0.3))[0])
    # 6e-5 to 1.1e-4, depending on the latents; 1e-4 in float64, from the solver. TF32: 0.04.
    return judge("density guidance at q = 0.3, tracked - true: nats", error, 1e-3)


def high_density() -> Finding:
    """Check the tracked log-density at a q where the published rule, without bound, diverges."""
    error = largest(tracked(density_guidance(0.7))[0])
    # 6e-5 to 1e-4 for nine latents of ten, 4.5e-4 for one. Without the bound on eta: 13.
    return judge("density guidance at q = 0.7, tracked - true: nats", error, 5e-4)


def bound_reported() -> Finding:
    """Check the reported share of the log-SNR range on which eta is at its bound."""
    share = tracked(density_guidance(0.7))[1].bound_share
    # 0.303 to 0.337, depending on the latents.
    return judge("the share of log-SNR on which its bound acts", share, 0.42, low=0.25)


def one_compilation() -> Finding:
    """Check that another value of q compiles nothing."""
    tracked(density_guidance(0.5))
    before = traces["rk4"]
    for q in (0.2, 0.4, 0.6, 0.8):
        tracked(density_guidance(q), steps=STEPS)
    return judge("compilations while q goes over 4 more values", traces["rk4"] - before, 0)


@jax.jit
def _pilot(model: Field, latents: Array, grid: Array) -> Profile:
    return pilot(model, latents, grid, key=jax.random.key(0), divergence=Exact())


def closed_loop() -> Finding:
    """Check that closed-loop guidance reaches its target log-density, by SciPy."""
    mixture = make_mixture()
    model = model_of(mixture)
    typical = mixture.noisy(1.0, W_MIN)
    target = np.mean(typical.log_density(typical.draw(np.random.default_rng(5), 256))) + 10
    profile = _pilot(model, latents_of(mixture), grid_uniform(model, STEPS))
    gap, solution = tracked(target_guidance(target, model, profile), noise=None)
    error = largest(solution.log_density - gap - target)
    # 0.0102, as in float64: the error of the last step, which no later step corrects.
    return judge("closed-loop target, true - asked for: nats", error, 0.03)
