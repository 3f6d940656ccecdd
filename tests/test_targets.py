"""Asking for a log-density: the TRUE one at the end, by closed loop and by shooting.

The truth is the closed form at t_min, never the tracked value that both methods steer by.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import register_dataclass

from dgjax import analytic, divergence, fields, grids, guidance, paths, targets
from dgjax.sampling import sample
from dgjax.solvers import RK4
from dgjax.typing import inner

RHO = 7.0
TOLERANCE = 0.01  # nats per dimension


@register_dataclass
@dataclass(frozen=True)
class Span:
    """The exact trace of a map that is a multiple of the identity off the span of the data.

    So is the denoiser's Jacobian of a kernel density; the last row of `basis` lies outside.
    """

    basis: jax.Array

    def __call__(self, jvp, x, key):
        del key
        directions = self.basis.reshape(-1, *x.shape)
        entries = jax.vmap(lambda z: inner(z, jvp(z)))(directions)
        rank = entries.shape[0] - 1
        return (jnp.sum(entries[:-1]) + (x.size - rank) * entries[-1])[None]

    def standard_error(self, estimates):
        return jnp.zeros((), estimates.dtype)


class Problem(NamedTuple):
    """A closed-form model, its divergence, a grid, latents, and the highest of its modes."""

    model: fields.Field
    divergence: divergence.Divergence
    grid: jax.Array
    latents: jax.Array
    mode: float


def make_problem(mixture, trace, *, steps=96, count=5, w_min=0.05):
    model = analytic.closed_form(
        mixture, paths.edm(RHO), t_min=w_min ** (1 / RHO), t_max=20.0 ** (1 / RHO)
    )
    keys = jax.random.split(jax.random.key(3), count)
    latents = jax.jit(jax.vmap(lambda k: mixture.sample(k, 20.0)))(keys)
    centres = mixture.means.reshape(-1, *mixture.shape)
    heights = jax.jit(jax.vmap(lambda y: mixture.log_density(y, w_min)))(centres)
    return Problem(model, trace, grids.grid_uniform(model, steps), latents, float(heights.max()))


def images():
    """Five smooth 28 x 28 images, each blurred by 0.3."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(5, 7, 7))
    data = np.kron(coarse, np.ones((4, 4)))
    flat = np.concatenate([data.reshape(5, -1), rng.normal(size=(1, 784))]).T
    return analytic.kernel_density(data, 0.3), Span(jnp.asarray(np.linalg.qr(flat)[0].T))


@pytest.fixture(scope="module")
def problem(request, mixture16, mixture64):
    size = request.param
    if size == 784:
        return make_problem(*images())
    mixture = {16: mixture16, 64: mixture64}[size].model
    return make_problem(mixture, divergence.Exact())


def truth(model, x):
    exact = lambda x: analytic.log_density(model, model.t_min, x)
    return jax.jit(jax.vmap(jax.vmap(exact)))(x)


@pytest.mark.parametrize("problem", [16, 64, 784], indirect=True)
def test_closed_loop(problem):
    model, trace, grid, latents, mode = problem
    size = latents[0].size
    solve = {"divergence": trace, "solver": RK4()}

    @jax.jit
    def run(latents):
        profile = targets.pilot(model, latents, grid, key=jax.random.key(0), **solve)
        usual = profile.ahead[0] + jnp.mean(jax.vmap(lambda x: fields.log_prior(model, x))(latents))
        spread = jnp.sqrt(size / 2)
        goals = jnp.stack([usual - spread, usual, usual + 0.5*spread, mode + 0.1 * size])

        def one(x, goal):
            guide = guidance.target_guidance(goal, model, profile)
            return sample(model, x, grid, key=jax.random.key(1), guides=(guide,), **solve)

        return goals, jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(None, 0))(latents, goals)

    goals, out = run(latents)
    reached = truth(model, out.x)
    print("LOOP", size, 'mode', mode, goals, "\n", reached - goals[:, None], "\n", np.abs(reached-out.log_density).max(1), out.info.target_met, out.info.bound_share)


@pytest.mark.parametrize("problem", [16, 64, 784], indirect=True)
def test_shooting(problem):
    model, trace, grid, latents, mode = problem
    size = latents[0].size
    solve = {"divergence": trace, "solver": RK4()}

    @jax.jit
    def run(latents, goals):
        def one(x, goal):
            return targets.shoot(model, x, grid, goal, key=jax.random.key(1), **solve)
        return jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(None, 0))(latents, goals)
    spread = np.sqrt(size / 2)
    usual = mode - size/2
    goals = jnp.stack([usual - spread, usual, usual + 0.5*spread, mode + 0.1 * size])
    shot = run(latents, goals)
    out = shot.sampled
    reached = truth(model, out.x)
    print("SHOOT", size, 'mode', mode, goals, "\n", reached - goals[:, None], "\n", np.abs(reached-out.log_density).max(1), out.info.target_met, out.info.bound_share, shot.q, shot.log_density_range[0])
