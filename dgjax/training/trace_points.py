"""Points at which a head learns the trace of a model's Jacobian, and what it learns there.

The points lie on trajectories of the model itself, at log-densities from low to high, so that no
data are needed. Samples of data may be added, which are noised.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.guidance.density import density_guidance
from dgjax.model.coloured_probes import colouring
from dgjax.model.divergence import Untracked, rademacher
from dgjax.model.field import Field, denoise
from dgjax.model.paths import logsnr
from dgjax.model.prior import prior_sample
from dgjax.model.reverse_mode import has_forward_mode, transpose
from dgjax.sampling.results import Trajectory
from dgjax.sampling.sample import sample
from dgjax.typing import Cond, Key, Sample, Scalar

__all__ = [
    "Points",
    "diagonal",
    "join_points",
    "measure_diagonals",
    "points_of_data",
    "points_of_trajectories",
]

QUANTILES = (0.1, 0.9)  # of density guidance, so that samples of every dial are covered


class Points(NamedTuple):
    """Points (t, x), and unbiased estimates of the diagonal of d x0/d y there.

    Attributes:
        t: (N,) times on the model's path.
        x: (N, *shape) points.
        conditions: (N, ...) conditions of the network, or None.
        diagonals: (N, 2, *shape) two independent estimates at each point, or None before
            `measure_diagonals`.
    """

    t: np.ndarray
    x: np.ndarray
    conditions: Cond = None
    diagonals: np.ndarray | None = None


def points_of_trajectories(
    model: Field,
    shape: tuple[int, ...],
    key: Key,
    count: int,
    *,
    conditions: Cond = None,
    steps: int = 16,
) -> Points:
    """Return the points of trajectories at random q.

    Args:
        model: the field.
        shape: shape of one sample.
        key: of everything random.
        count: number of trajectories, which are computed together.
        conditions: (K, ...) conditions of which one is drawn for each trajectory, or None.
        steps: of the solver; a trajectory has one point more. The times within are shifted at
            random.
    """
    return jax.device_get(_trajectories(model, conditions, key, shape, count, steps))


def _trajectories(model, conditions, key, shape, count, steps) -> Points:
    keys = jax.random.split(key, 2)
    shift = jax.random.uniform(keys[0], minval=-0.5, maxval=0.5)
    times = _times(model, (jnp.arange(1, steps) + shift) / steps)
    grid = jnp.concatenate([model.t_max[None], times, model.t_min[None]])

    xs, conds = _trajectory(model, conditions, grid, jax.random.split(keys[1], count), shape)
    repeated = jax.tree.map(lambda a: jnp.repeat(a, steps + 1, axis=0), conds)
    return Points(jnp.tile(grid, count), xs.reshape(-1, *shape), repeated)


@partial(jax.jit, static_argnums=4)
def _trajectory(model, conditions, grid, keys, shape) -> tuple[Array, Cond]:
    def one(key):
        keys = jax.random.split(key, 4)
        cond = _draw_condition(conditions, keys[0])
        low, high = QUANTILES
        guide = density_guidance(jax.random.uniform(keys[1], minval=low, maxval=high))
        options = {"divergence": Untracked(), "save": Trajectory, "cond": cond, "key": keys[2]}
        x = prior_sample(model, keys[3], shape)
        return sample(model, x, grid, guides=(guide,), **options).trajectory.x, cond

    return jax.vmap(one)(keys)


def points_of_data(model: Field, data: Float[Array, "n ..."], key: Key) -> Points:
    """Return clean samples with noise, at noise levels over the range of the model.

    Args:
        model: the field.
        data: clean samples.
        key: of the noise.
    """
    data = jnp.asarray(data)
    keys = jax.random.split(key, 2)
    t = _times(model, (jnp.arange(len(data)) + jax.random.uniform(keys[0])) / len(data))
    expand = lambda a: a.reshape(-1, *(1,) * (data.ndim - 1))
    noise = jax.random.normal(keys[1], data.shape)
    x = expand(model.path.alpha(t)) * data + expand(model.path.sigma(t)) * noise
    return jax.device_get(Points(t, x))


def measure_diagonals(
    model: Field, points: Points, key: Key, *, products: int = 8, batch: int = 64
) -> Points:
    """Estimate the diagonal of the Jacobian at points.

    Args:
        model: the field.
        points: the points.
        key: of the probes.
        products: products with the Jacobian at each point, an even number.
        batch: points in one compiled call.
    """
    found = []
    for i in range(0, len(points.t), batch):
        part = jax.tree.map(lambda a, i=i: jnp.asarray(a[i : i + batch]), points)
        found.append(jax.device_get(_diagonals(model, part, jax.random.fold_in(key, i), products)))
    return points._replace(diagonals=np.concatenate(found))


def join_points(parts: list[Points]) -> Points:
    """Return all points in one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def diagonal(
    model: Field, t: Scalar, x: Sample, key: Key, cond: Cond, products: int
) -> Float[Array, "2 ..."]:
    """Estimate the diagonal of the Jacobian of x0 in y = x/alpha twice, by coloured random signs.

    Args:
        model: the field.
        t: a time on the model's path.
        x: one sample.
        key: of the signs.
        cond: condition of the network.
        products: products with the Jacobian for both estimates together, an even number.
    """
    _, push = jax.linearize(lambda x: denoise(model, t, x, cond), x)
    product = push if has_forward_mode(push, x) else transpose(push, x)
    colours = min(products // 2, x.size)
    colour = jnp.asarray(colouring(x.shape or (1,), colours)).reshape(x.shape)
    masks = jax.nn.one_hot(colour, colours, axis=0, dtype=x.dtype)
    signs = jax.vmap(lambda key: rademacher(key, x))(jax.random.split(key, 2))
    probes = (signs[:, None] * masks[None]).reshape(-1, *x.shape)
    found = probes * jax.vmap(product)(probes)
    return model.path.alpha(t) * jnp.sum(found.reshape(2, colours, *x.shape), 1)


@partial(jax.jit, static_argnums=3)
def _diagonals(model: Field, points: Points, key: Key, products: int) -> Array:
    one = lambda t, x, cond, key: diagonal(model, t, x, key, cond, products)
    keys = jax.random.split(key, len(points.t))
    return jax.vmap(one)(points.t, points.x, points.conditions, keys)


def _times(model: Field, share: Array) -> Array:
    """Return times at shares of the range of log-SNR, from t_max on."""
    ends = logsnr(model.path, model.t_max), logsnr(model.path, model.t_min)
    return model.path.time(ends[0] + (ends[1] - ends[0]) * share)


def _draw_condition(conditions: Cond, key: Key) -> Cond:
    if conditions is None:
        return None
    count = jax.tree.leaves(conditions)[0].shape[0]
    index = jax.random.randint(key, (), 0, count)
    return jax.tree.map(lambda a: a[index], conditions)
