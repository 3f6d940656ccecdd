"""The augmented solve: the tracked log-density is the true one, at the solver's order.

The truth is the closed-form log-density of a Gaussian mixture at the model's t_min. Solves walk
the grid in pieces of `CHUNK` steps, each starting from the log-density that the last one
reached, so that one compilation serves every number of steps.
"""

import functools
from dataclasses import dataclass

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import register_dataclass

from dgjax import analytic, divergence, fields, grids, guidance, noise, parametrization, paths
from dgjax.sampling import Trajectory, sample
from dgjax.solvers import RK4
from dgjax.typing import inner

CHUNK = 32
QUANTILES = jnp.array([0.5, 0.2, 0.7])
SIGMA_MIN, SIGMA_MAX = 0.05, 20.0


def full_mixture(size, count):
    """A mixture with full covariances, whose scales span a factor of ten."""
    ka, kb = jax.random.split(jax.random.key(0))
    a = jax.random.normal(ka, (count, size, size)) * jnp.logspace(-1, 0, size)[None, None]
    covariances = jnp.einsum("kij,klj->kil", a, a) / size
    means = jax.random.normal(kb, (count, size))
    return analytic.gaussian_mixture(jnp.arange(1.0, count + 1), means, covariances)


def low_rank_mixture(shape=(28, 28), count=3, rank=4):
    """An image-sized mixture: a few directions of its own for each component, thin elsewhere."""
    size = int(np.prod(shape))
    keys = jax.random.split(jax.random.key(1), count + 1)
    basis = jax.vmap(lambda k: jnp.linalg.qr(jax.random.normal(k, (size, rank)))[0])(keys[1:])
    return analytic.GaussianMixture(
        jnp.log(jnp.array([0.5, 0.3, 0.2])),
        jax.random.normal(keys[0], (count, size)),
        basis,
        jnp.broadcast_to(jnp.array([9.0, 4.0, 1.0, 0.5]), (count, rank)),
        jnp.full(count, 0.1),
        shape,
    )


@register_dataclass
@dataclass(frozen=True)
class Subspace:
    """The exact trace of a map that is a multiple of the identity off the first r of `basis`.

    So is the denoiser's Jacobian of a mixture whose components are thin alike in all other
    directions: r + 1 products do the work of D.
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


def subspace(mixture):
    """The `Subspace` in which the components of `mixture` differ."""
    count, size = mixture.means.shape
    spread = mixture.basis.transpose(1, 0, 2).reshape(size, -1)
    outside = jax.random.normal(jax.random.key(2), (size, 1))
    return Subspace(jnp.linalg.qr(jnp.concatenate([mixture.means.T, spread, outside], 1))[0].T)


@functools.cache
def problem(size):
    """(model, divergence, latents) of the mixture with `size` dimensions."""
    mixture = {
        2: lambda: full_mixture(2, 3),
        16: lambda: full_mixture(16, 5),
        784: low_rank_mixture,
    }[size]()
    rho = 7.0
    model = analytic.closed_form(
        mixture, paths.edm(rho), t_min=SIGMA_MIN ** (1 / rho), t_max=SIGMA_MAX ** (1 / rho)
    )
    trace = subspace(mixture) if size == 784 else divergence.Exact()
    keys = jax.random.split(jax.random.key(3), 3 if size == 784 else 12)
    return model, trace, jax.vmap(lambda k: mixture.sample(k, SIGMA_MAX))(keys)


def truth(model, x):
    return jax.vmap(lambda x: analytic.log_density(model, model.t_min, x))(x)


def in_pieces(piece, model, x, steps):
    """Calls `piece(x, grid, log_density)` along the grid; returns x and its log-density."""
    grid = grids.grid_uniform(model, steps)
    log_density = jax.vmap(lambda x: fields.log_prior(model, x))(x)
    for start in range(0, steps, CHUNK):
        x, log_density = piece(x, grid[start : start + CHUNK + 1], log_density)
    return x, log_density


STEPS = {"euler": (64, 128, 256), "heun": (64, 128, 256), "rk4": (64, 128, 256)}
STEPS["dopri5"] = (64, 128, 256, 512)
SOLVERS = {
    "euler": (diffrax.Euler(), 1),
    "heun": (diffrax.Heun(), 2),
    "rk4": (RK4(), 4),
    "dopri5": (diffrax.Dopri5(), 5),
}


@functools.cache
def errors(size, method):
    """Tracked minus true log-density, (steps, quantiles, latents), in nats."""
    model, trace, latents = problem(size)

    @jax.jit
    def piece(x, grid, log_density):
        def one(x, log_density, q):
            out = sample(
                model,
                x,
                grid,
                key=jax.random.key(0),
                log_density=log_density,
                guides=(guidance.density_guidance(q),),
                divergence=trace,
                solver=SOLVERS[method][0],
            )
            return out.x, out.log_density

        count = len(x) // len(QUANTILES)
        return jax.vmap(one)(x, log_density, jnp.repeat(QUANTILES, count))

    everything = jnp.concatenate([latents] * len(QUANTILES))
    rows = []
    for steps in STEPS[method]:
        x, tracked = in_pieces(piece, model, everything, steps)
        rows.append((tracked - truth(model, x)).reshape(len(QUANTILES), -1))
    return np.stack(rows)


def rms(a, axis=-1):
    return np.sqrt(np.mean(np.square(a), axis))


def slope(steps, error):
    return -np.polyfit(np.log(steps), np.log(error), 1)[0]


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("size", [2, 16, 784])
def test_tracked_converges_to_true_at_the_solvers_order(size, method):
    order = SOLVERS[method][1]
    error = rms(errors(size, method)[:, 0])
    print(size, method, error, slope(STEPS[method], error), rms(errors(size, method))/size)
    assert order - 0.2 < slope(STEPS[method], error) < order + 0.8


@pytest.mark.parametrize("size", [2, 16, 784])
def test_order_five_is_exact_at_512_steps(size):
    error = np.abs(errors(size, "dopri5")[-1]).max(-1) / size
    assert error[0] < 1e-6  # the PF-ODE
    assert error.max() < 1e-5  # density guidance with eta kept in [0, 2]
