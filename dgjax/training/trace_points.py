"""Points at which a head learns the trace of a model's Jacobian, and what it learns there.

The points lie on trajectories of the model itself, at log-densities from low to high, so that no
data are needed. Samples of data may be added, which are noised.
"""

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.guidance.density import density_guidance
from dgjax.model.coloured_probes import colouring
from dgjax.model.divergence import Untracked, rademacher
from dgjax.model.field import Field
from dgjax.model.paths import logsnr
from dgjax.model.prior import prior_sample
from dgjax.model.trace_head import linearized_denoiser
from dgjax.sampling.results import Trajectory
from dgjax.sampling.sample import sample
from dgjax.typing import Cond, Key, LinearMap, Sample

__all__ = [
    "Lessons",
    "Points",
    "join",
    "measure",
    "points_of_data",
    "points_of_trajectories",
]

# NumPy arrays on the host, JAX arrays on the devices.
Numbers: TypeAlias = Any

QUANTILES = (0.1, 0.9)  # of density guidance, so that samples of every dial are covered


class Points(NamedTuple):
    """Points (t, x) of a model.

    Attributes:
        t: (N,) times on the model's path.
        x: (N, *shape) points.
        conditions: (N, ...) conditions of the network, or None.
    """

    t: Numbers
    x: Numbers
    conditions: Cond = None


class Lessons(NamedTuple):
    """Inputs of a head at N points, and estimates of the diagonal that it predicts.

    The features are float16 to save memory.

    Attributes:
        features: outputs of the layers that the head reads, (N, ...) each.
        y: (N, *shape) points divided by alpha.
        x0: (N, *shape) denoised samples.
        w: (N,) noise levels sigma/alpha.
        diagonals: (N, 2, *shape) two independent unbiased estimates of the diagonal of d x0/d y.
    """

    features: tuple[Numbers, ...]
    y: Numbers
    x0: Numbers
    w: Numbers
    diagonals: Numbers


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
    keys = jax.random.split(key, 2)
    shift = jax.random.uniform(keys[0], minval=-0.5, maxval=0.5)
    times = _times(model, (jnp.arange(1, steps) + shift) / steps)
    grid = jnp.concatenate([model.t_max[None], times, model.t_min[None]])
    xs, conds = _trajectories(model, conditions, grid, jax.random.split(keys[1], count), shape)
    repeated = jax.tree.map(lambda a: jnp.repeat(a, steps + 1, axis=0), conds)
    return jax.device_get(Points(jnp.tile(grid, count), xs.reshape(-1, *shape), repeated))


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


def measure(
    model: Field,
    points: Points,
    layers: tuple[str, ...],
    key: Key,
    *,
    products: int = 4,
    batch: int = 64,
) -> Lessons:
    """Evaluate a model at points, with estimates of the diagonal of its Jacobian.

    Args:
        model: the field.
        points: the points.
        layers: names of the layers of the network that the head reads.
        key: of the probes.
        products: products with the Jacobian at each point, an even number: half of them for each
            of the two estimates.
        batch: points in one compiled call.
    """
    found = []
    for i in range(0, len(points.t), batch):
        part = jax.tree.map(lambda a, i=i: jnp.asarray(a[i : i + batch]), points)
        one = _measure(model, part, layers, jax.random.fold_in(key, i), products)
        found.append(jax.device_get(one))
    return join(found)


def join(parts: list) -> Lessons:
    """Return all lessons, or all points, in one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


@partial(jax.jit, static_argnums=4)
def _trajectories(model, conditions, grid, keys, shape) -> tuple[Array, Cond]:
    def one(key):
        keys = jax.random.split(key, 4)
        cond = _draw_condition(conditions, keys[0])
        low, high = QUANTILES
        guide = density_guidance(jax.random.uniform(keys[1], minval=low, maxval=high))
        options = {"divergence": Untracked(), "save": Trajectory, "cond": cond, "key": keys[2]}
        x = prior_sample(model, keys[3], shape)
        return sample(model, x, grid, guides=(guide,), **options).trajectory.x, cond

    return jax.vmap(one)(keys)


@partial(jax.jit, static_argnums=(2, 4))
def _measure(model: Field, points: Points, layers, key: Key, products: int) -> Lessons:
    def one(t, x, cond, key):
        x0, product, features = linearized_denoiser(model, t, x, cond, layers)
        alpha = model.path.alpha(t)
        w = jnp.exp(-0.5 * logsnr(model.path, t))
        features = tuple(feature.astype(jnp.float16) for feature in features)
        found = alpha * _diagonals(product, x, key, products // 2)
        return Lessons(features, x / alpha, x0, w, found)

    keys = jax.random.split(key, len(points.t))
    return jax.vmap(one)(points.t, points.x, points.conditions, keys)


def _diagonals(product: LinearMap, x: Sample, key: Key, colours: int) -> Float[Array, "2 ..."]:
    """Estimate the diagonal of a linear map twice, by random signs on one colour at a time."""
    colours = min(colours, x.size)
    colour = jnp.asarray(colouring(x.shape or (1,), colours)).reshape(x.shape)
    masks = jax.nn.one_hot(colour, colours, axis=0, dtype=x.dtype)
    signs = jax.vmap(lambda key: rademacher(key, x))(jax.random.split(key, 2))
    probes = (signs[:, None] * masks[None]).reshape(-1, *x.shape)
    found = probes * jax.vmap(product)(probes)
    return jnp.sum(found.reshape(2, colours, *x.shape), 1)


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
