"""The model of the mixture, and solves of it that share few compiled functions.

All solves use pieces of the same number of steps, and one noise term that contains all others;
scales of 0 turn its parts off. So few programs are compiled.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dgjax.check.oracle import BATCH, Mixture, make_mixture
from dgjax.guidance.guide import Guide
from dgjax.guidance.noise import StratonovichNoise, level_set_noise, reverse_sde
from dgjax.model.closed_form import closed_form
from dgjax.model.divergence import Exact
from dgjax.model.field import Field, log_prior
from dgjax.model.gaussian_mixture import gaussian_mixture
from dgjax.model.local import Local
from dgjax.model.paths import edm
from dgjax.sampling.results import Sampled, Trajectory
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import SOLVERS
from dgjax.sampling.time_grids import grid_uniform
from dgjax.typing import Key, Sample, as_float, register_dataclass

__all__ = [
    "STEPS",
    "W_MIN",
    "NoiseScales",
    "Solution",
    "latents_of",
    "model_of",
    "solve",
    "traces",
    "tracked",
    "true_log_density",
]

RHO, W_MIN, W_MAX = 7.0, 0.05, 20.0
STEPS = 32  # steps of one compiled piece; a longer solve repeats it


def model_of(mixture: Mixture) -> Field:
    """Make the closed-form field of the mixture on the EDM path."""
    ends = {"t_min": W_MIN ** (1 / RHO), "t_max": W_MAX ** (1 / RHO)}
    return closed_form(gaussian_mixture(*mixture), edm(RHO), **ends)


def latents_of(mixture: Mixture) -> Array:
    """Draw latents (BATCH, SIZE) of the mixture at t_max."""
    return as_float(mixture.noisy(1.0, W_MAX).draw(np.random.default_rng(2), BATCH))


def true_log_density(mixture: Mixture, model: Field, x: Array) -> np.ndarray:
    """Return log-densities of x at the model's t_min in nats, by SciPy."""
    sigma = float(model.t_min) ** RHO
    return mixture.noisy(1.0, sigma).log_density(np.asarray(x, np.float64))


@register_dataclass
@dataclass(frozen=True)
class _Noises:
    """Sum of Stratonovich noise terms."""

    terms: tuple[StratonovichNoise, ...]

    def increment(self, local: Local, dt: Array, dW: Sample) -> Sample:
        return sum((n.increment(local, dt, dW) for n in self.terms), jnp.zeros_like(dW))


class NoiseScales(NamedTuple):
    """Scales of the noise along the level set and of the noise of the reverse SDE."""

    level_set: float = 0.0
    reverse: float = 0.0


traces: Counter[str] = Counter()  # number of compilations of `_piece` by solver


@partial(jax.jit, static_argnames="solver")
def _piece(
    model: Field,
    x: Array,
    grid: Array,
    log_density: Array,
    guide: Guide,
    noise: _Noises | None,
    key: Key,
    solver: str,
) -> Sampled:
    traces[solver] += 1  # runs only while tracing

    def one(x: Sample, log_density: Array, key: Key) -> Sampled:
        return sample(
            model,
            x,
            grid,
            key=key,
            log_density=log_density,
            guides=(guide,),
            noise=noise,
            divergence=Exact(),
            solver=SOLVERS[solver](),
            save=Trajectory,
        )

    return jax.vmap(one)(x, log_density, jax.random.split(key, x.shape[0]))


@jax.jit
def _priors(model: Field, x: Array) -> Array:
    return jax.vmap(lambda x: log_prior(model, x))(x)


class Solution(NamedTuple):
    """Result of a solve.

    Attributes:
        x: (BATCH, SIZE) samples at t_min.
        log_density: (BATCH,) tracked log-densities in nats.
        bound_share: share of the log-SNR range on which the guide was at its bound.
        trajectories: the trajectory of each piece.
    """

    x: Array
    log_density: np.ndarray
    bound_share: float
    trajectories: list[Trajectory]


def solve(
    model: Field,
    x: Array,
    guide: Guide,
    *,
    steps: int = 2 * STEPS,
    noise: NoiseScales | None = NoiseScales(),
    solver: str = "rk4",
) -> Solution:
    """Integrate from latents x at t_max to t_min.

    Args:
        model: the field.
        x: (BATCH, SIZE) latents.
        guide: the guide.
        steps: number of steps, a multiple of STEPS.
        noise: scales of the noise. All scales share one program; None compiles a smaller one.
        solver: name of the solver.
    """
    term = noise and _Noises((level_set_noise(noise[0]), reverse_sde(noise[1])))
    grid, log_density = grid_uniform(model, steps), _priors(model, x)
    shares, trajectories = [], []
    for i, start in enumerate(range(0, steps, STEPS)):
        piece, key = grid[start : start + STEPS + 1], jax.random.key(i)
        out = _piece(model, x, piece, log_density, guide, term, key, solver)
        x, log_density = out.x, out.log_density
        shares.append(np.mean(out.info.bound_share))
        trajectories.append(out.trajectory)
    return Solution(x, np.asarray(log_density), float(np.mean(shares)), trajectories)


def tracked(guide: Guide, **options: Any) -> tuple[np.ndarray, Solution]:
    """Return tracked minus true log-densities in nats, and the solution they come from."""
    mixture = make_mixture()
    model = model_of(mixture)
    solution = solve(model, latents_of(mixture), guide, **options)
    return solution.log_density - true_log_density(mixture, model, solution.x), solution
