"""Particles, their energies and reference samples: DW-4 and LJ-13 (arXiv 2006.02425, 2306.15030).

Energies do not change when all particles move together, so that only coordinates with mean 0 have a
density. `positions` makes them from orthonormal coordinates z, and `metropolis` draws z.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import helmert


class System(NamedTuple):
    """Particles, their energy in units of kT, and the size of the experiment.

    Attributes:
        count: number of particles.
        space: dimension of the space that they live in.
        pair: energy of two particles at a distance.
        spring: constant of the spring to the centre of mass.
        stride: proposed width of a particle's move in the Metropolis chain.
        steps: of the training.
        batch: of the training.
        samples: of the model.
        euler: of them, with Euler steps; none with 0.
        together: of them, at once, which bounds memory.
        law: number of steps with which the law is measured, too; 0 where it costs too much.
    """

    count: int
    space: int
    pair: Callable
    spring: float
    stride: float
    steps: int
    batch: int
    samples: int
    euler: int
    together: int
    law: int


def double_well(r):
    """Return the energy of a pair at distance r: wells at 2.5 and 5.5, 4.4 kT deep."""
    return 0.9 * (r - 4) ** 4 - 4 * (r - 4) ** 2


def lennard_jones(r):
    """Return the energy of a pair at distance r: 2 kT deep at 1."""
    return 2 * r**-12 - 4 * r**-6


SYSTEMS = {
    "dw4": System(4, 2, double_well, 0.0, 0.8, 1500, 256, 256, 256, 128, 32),
    "lj13": System(13, 3, lennard_jones, 1.0, 0.25, 10000, 128, 512, 0, 16, 0),
}


def positions(system, z):
    """Return (count, space) positions with mean 0 from their orthonormal coordinates."""
    return jnp.asarray(helmert(system.count), z.dtype).T @ z.reshape(-1, system.space)


def distances(x):
    """Return the (pairs,) distances of particles."""
    first, second = np.triu_indices(len(x), 1)
    return jnp.linalg.norm(x[first] - x[second], axis=-1)


def energy(system, x):
    """Return the energy of positions in units of kT."""
    spring = 0.5 * system.spring * jnp.sum((x - jnp.mean(x, 0)) ** 2)
    return jnp.sum(system.pair(distances(x))) + spring


def metropolis(system, key, chains=256, kept=32, thin=64, burn=1000):
    """Return (chains, kept, D) coordinates z from independent chains, one particle at a time.

    A sweep proposes one move for every particle; `thin` sweeps are between two kept samples.
    """

    def move(x, item):
        index, key = item
        keys = jax.random.split(key)
        step = system.stride * jax.random.normal(keys[0], (system.space,))
        old, new = x[index], x[index] + step
        others = jnp.arange(system.count) != index
        to = lambda place: jnp.linalg.norm(jnp.where(others[:, None], x - place, 1), axis=1)
        bonds = jnp.sum(system.pair(to(new)) - system.pair(to(old)), where=others)
        # Of sum |x - mean|^2, which has the mean of the moved particles.
        away = 2 * step @ (old - jnp.mean(x, 0)) + (1 - 1 / system.count) * step @ step
        accept = -jnp.log(jax.random.uniform(keys[1])) > bonds + 0.5 * system.spring * away
        return x.at[index].set(jnp.where(accept, new, old)), None

    def sweeps(state, key, count):
        keys = jax.random.split(key, count * system.count)
        index = jnp.tile(jnp.arange(system.count), count)
        return jax.lax.scan(move, state, (index, keys))[0]

    def chain(key):
        keys = jax.random.split(key, kept + 2)
        x = sweeps(3 * jax.random.normal(keys[0], (system.count, system.space)), keys[1], burn)

        def keep(x, key):
            x = sweeps(x, key, thin)
            x = x - jnp.mean(x, 0)  # energies do not see the drift of the centre of mass
            return x, (jnp.asarray(helmert(system.count), x.dtype) @ x).reshape(-1)

        return jax.lax.scan(keep, x, keys[2:])[1]

    return np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(key, chains)))
