"""Gradients of the final log-density in the latent, in q and in network parameters.

Reverse and forward mode against central differences of the same solve, along the ODE and through
the noise.
"""

import functools
from dataclasses import dataclass

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import RK4
from dgjax.typing import register_dataclass

SIZE, WIDTH, STEPS = 3, 8, 6


@register_dataclass
@dataclass(frozen=True)
class Network:
    """A small smooth denoiser."""

    inward: jax.Array
    outward: jax.Array
    time: jax.Array

    def __call__(self, x, t, cond):
        hidden = self.inward @ x / jnp.sqrt(1 + t**2) + self.time * jnp.log(t)
        return x / (1 + t**2) + self.outward @ jnp.tanh(hidden)


@pytest.fixture(scope="module")
def point():
    """(latent, q, network)."""
    keys = jax.random.split(jax.random.key(0), 4)
    network = Network(
        jax.random.normal(keys[0], (WIDTH, SIZE)) / 2,
        jax.random.normal(keys[1], (SIZE, WIDTH)) / 8,
        jax.random.normal(keys[2], (WIDTH,)),
    )
    return 4 * jax.random.normal(keys[3], (SIZE,)), jnp.asarray(0.6), network


METHODS = {
    "ode": (None, RK4()),
    "level_set": (dgjax.level_set_noise(0.5), RK4()),
    "noise_matched": (dgjax.noise_matched(0.5), diffrax.Euler()),
}
ADJOINTS = {
    "default": None,
    "recursive": diffrax.RecursiveCheckpointAdjoint(),
}


def value(x, q, network, *, method, adjoint=None):
    term, solver = METHODS[method]
    model = dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=0.2, t_max=4.0)
    return sample(
        model,
        x,
        dgjax.grid_karras(model, STEPS),
        key=jax.random.key(1),
        guides=(dgjax.density_guidance(q),),
        noise=term,
        divergence=dgjax.Exact(),
        solver=solver,
        adjoint=adjoint,
    ).log_density


def directions(point):
    """One random direction in each of the three arguments, the others at rest."""
    leaves, tree = jax.tree.flatten(point)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    whole = jax.tree.unflatten(tree, moved)
    zero = jax.tree.map(jnp.zeros_like, whole)
    return [tuple(whole[i] if i == j else zero[i] for i in range(3)) for j in range(3)]


@functools.cache
def run(method):
    return jax.jit(functools.partial(value, method=method))


@pytest.fixture(scope="module")
def differences(point):
    """Central differences along each direction, by method."""

    @functools.cache
    def measure(method):
        def shifted(direction, h):
            moved = jax.tree.map(lambda a, d: a + h * d, point, direction)
            return float(run(method)(*moved))

        def slope(d, h=1e-4):  # of fourth order in h
            near, far = (shifted(d, h) - shifted(d, -h), shifted(d, 2 * h) - shifted(d, -2 * h))
            return (8 * near - far) / (12 * h)

        return np.array([slope(direction) for direction in directions(point)])

    return measure


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "adjoint"),
    [
        ("ode", "default"),
        ("ode", "recursive"),
        ("level_set", "default"),
        ("noise_matched", "default"),
    ],
)
def test_reverse_mode(point, differences, method, adjoint):
    of = functools.partial(value, method=method, adjoint=ADJOINTS[adjoint])
    gradient = jax.tree.leaves(jax.jit(jax.grad(of, argnums=(0, 1, 2)))(*point))

    def inner(direction):
        return sum(map(jnp.vdot, gradient, jax.tree.leaves(direction)))

    along = np.array([inner(d) for d in directions(point)])
    assert (np.abs(along) > 1e-3).all()
    np.testing.assert_allclose(along, differences(method), rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ode", "level_set"])
def test_forward_mode(point, differences, method):
    of = functools.partial(value, method=method)
    stacked = jax.tree.map(lambda *d: jnp.stack(d), *directions(point))
    along = jax.jit(jax.vmap(lambda d: jax.jvp(of, point, d)[1]))(stacked)
    np.testing.assert_allclose(along, differences(method), rtol=1e-7)


@pytest.mark.slow
def test_vmap_over_q_is_one_q_at_a_time(point):
    x, _, network = point
    q = jnp.array([0.3, 0.5, 0.8])
    together = jax.jit(jax.vmap(lambda q: value(x, q, network, method="ode")))(q)
    alone = jnp.stack([run("ode")(x, each, network) for each in q])
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert together[0] < together[1] < together[2]
