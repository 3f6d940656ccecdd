"""The mixture's model, and solves of it that share their compiled functions.

One noise that contains the others, numbers that turn parts of it off, and pieces of one length
are why there are so few.
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
from dgjax.model.closed_form import closed_form, gaussian_mixture
from dgjax.model.divergence import Exact
from dgjax.model.field import Field, log_prior
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
    "Heights",
    "Walk",
    "latents_of",
    "model_of",
    "solve",
    "traces",
    "tracked",
    "true_log_density",
]

RHO, W_MIN, W_MAX = 7.0, 0.05, 20.0
STEPS = 32  # in one compiled solve; longer ones are several of these


def model_of(mixture: Mixture) -> Field:
    ends = {"t_min": W_MIN ** (1 / RHO), "t_max": W_MAX ** (1 / RHO)}
    return closed_form(gaussian_mixture(*mixture), edm(RHO), **ends)


def latents_of(mixture: Mixture) -> Array:
    return as_float(mixture.noisy(1.0, W_MAX).draw(np.random.default_rng(2), BATCH))


def true_log_density(mixture: Mixture, model: Field, x: Array) -> np.ndarray:
    """Log-densities of x at the model's t_min in nats, by SciPy."""
    sigma = float(model.t_min) ** RHO
    return mixture.noisy(1.0, sigma).log_density(np.asarray(x, np.float64))


@register_dataclass
@dataclass(frozen=True)
class _Noises:
    """The sum of Stratonovich terms."""

    terms: tuple[StratonovichNoise, ...]

    def increment(self, local: Local, dt: Array, dW: Sample) -> Sample:
        return sum((n.increment(local, dt, dW) for n in self.terms), jnp.zeros_like(dW))


class Heights(NamedTuple):
    """Of the noise along the level set, and of the reverse SDE's."""

    level_set: float = 0.0
    reverse: float = 0.0


traces: Counter[str] = Counter()  # of the compiled solve, by its solver


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
    traces[solver] += 1  # runs while tracing only

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


class Walk(NamedTuple):
    """The end of a solve, (BATCH,) log-densities in nats, and its pieces' trajectories."""

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
    heights: Heights | None = Heights(),
    solver: str = "rk4",
) -> Walk:
    """From x at t_max to t_min; heights of 0 share one program, None is a smaller one."""
    noise = heights and _Noises((level_set_noise(heights[0]), reverse_sde(heights[1])))
    grid, log_density = grid_uniform(model, steps), _priors(model, x)
    shares, trajectories = [], []
    for i, start in enumerate(range(0, steps, STEPS)):
        piece, key = grid[start : start + STEPS + 1], jax.random.key(i)
        out = _piece(model, x, piece, log_density, guide, noise, key, solver)
        x, log_density = out.x, out.log_density
        shares.append(np.mean(out.info.bound_share))
        trajectories.append(out.trajectory)
    return Walk(x, np.asarray(log_density), float(np.mean(shares)), trajectories)


def tracked(guide: Guide, **options: Any) -> tuple[np.ndarray, Walk]:
    """Tracked minus true log-densities in nats, and the solve they come from."""
    mixture = make_mixture()
    model = model_of(mixture)
    walk = solve(model, latents_of(mixture), guide, **options)
    return walk.log_density - true_log_density(mixture, model, walk.x), walk
