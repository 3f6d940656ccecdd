"""Train a head that predicts the trace of a model's Jacobian, and measure its error.

The head learns from unbiased estimates of the Jacobian's diagonal (`Points`), element by element
and in their sum. The model itself does not change.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from dgjax.model.field import Field
from dgjax.model.paths import logsnr
from dgjax.model.trace_head import find_layers, recorded_pair
from dgjax.networks.trace_head import DiagonalHead
from dgjax.training.trace_points import Points
from dgjax.typing import Key

__all__ = ["calibrated", "distil", "fresh_head"]

HELD_OUT = 8  # one of so many points measures the error
Log = Callable[[int, float], None]


def distil(
    model: Field,
    points: Points,
    *,
    key: Key,
    steps: int = 2000,
    batch: int = 64,
    learning_rate: float = 2e-3,
    width: int = 64,
    layers: int = 6,
    log: Log = lambda step, loss: None,
) -> Field:
    """Train a head for the model on seven eighths of the points, and measure it on the others.

    Args:
        model: the field. Its weights do not change.
        points: estimates of the diagonal of its Jacobian.
        key: of the head's initial weights and the order of the points.
        steps: number of optimisation steps; the learning rate falls to 0 by a cosine.
        batch: points in one step.
        learning_rate: of Adam, at the start.
        width: channels of the head.
        layers: how many layers of the network the head reads.
        log: called with the number of each step and its loss.

    Returns:
        The model with the head, for the estimator `Distilled`.

    Raises:
        ValueError: if there are fewer than 8 points.
    """
    count = len(points.t)
    if count < HELD_OUT:
        raise ValueError(f"{count} points are too few to train on: give at least {HELD_OUT}")
    split = count - count // HELD_OUT
    train, rest = (jax.tree.map(lambda a, s=s: a[s], points) for s in (slice(split), slice(split, None)))
    head = fresh_head(model, train, key, width, layers)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    )
    state = optimiser.init(head)

    @jax.jit
    def step(head, state, model, part):
        value, gradient = jax.value_and_grad(_loss)(head, model, part)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(head, updates), state, value

    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    order = np.zeros(0, int)
    for number in range(steps):
        if len(order) < batch:
            order = np.concatenate([order, draw.permutation(split)])
        rows, order = order[:batch], order[batch:]
        part = jax.tree.map(lambda a, rows=rows: jnp.asarray(a[rows]), train)
        head, state, value = step(head, state, model, part)
        log(number + 1, float(value))
    return calibrated(replace(model, trace_head=head), rest, batch)


def fresh_head(model: Field, points: Points, key: Key, width: int, layers: int) -> DiagonalHead:
    """Return a head for the model with fresh weights, whose error is not known."""
    w = _noise(model, points.t)
    alpha = np.asarray(model.path.alpha(jnp.asarray(points.t)))
    y = points.x / alpha.reshape(-1, *(1,) * (points.x.ndim - 1))
    least = np.argsort(w)[: max(1, len(w) // 10)]  # the least noisy tenth
    sigma_data = np.sqrt(max(np.var(y[least]) - np.mean(w[least] ** 2), 1e-6))
    cond = jax.tree.map(lambda a: jnp.asarray(a[0]), points.conditions)
    found = find_layers(model, jnp.asarray(points.x[0]), layers, cond)
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    return DiagonalHead(
        points.x.shape[1:],
        tuple(found),
        tuple(found.values()),
        float(sigma_data),
        width,
        rngs=nnx.Rngs(seed),
    )


def calibrated(model: Field, points: Points, batch: int = 64, smooth: int = 1) -> Field:
    """Measure the error of the model's head at each noise level, and store it with the head.

    The product of two errors, each against its own estimate of the trace, has the squared error as
    its mean: the noise of the estimates drops out. One standard error of that mean is added.

    Args:
        model: a model with a head.
        points: points that the head was not trained on.
        batch: points in one compiled call.
        smooth: unused.
    """
    head: Any = model.trace_head
    errors = np.concatenate(
        [
            np.asarray(_errors(model, jax.tree.map(lambda a, i=i: jnp.asarray(a[i : i + batch]), points)))
            for i in range(0, len(points.t), batch)
        ]
    )
    log_w = np.log(_noise(model, points.t))
    levels = head.log_levels[...].shape[0]
    edges = np.linspace(log_w.min(), log_w.max(), levels + 1)
    squares = errors[:, 0] * errors[:, 1]
    bins = np.clip(np.digitize(log_w, edges) - 1, 0, levels - 1)
    found = np.array([_level_error(squares[bins == i]) for i in range(levels)])
    found[np.isnan(found)] = np.nanmax(found)
    centres = 0.5 * (edges[1:] + edges[:-1])
    copy = nnx.clone(head)
    copy.log_levels[...], copy.errors[...] = jnp.float32(centres), jnp.float32(found)
    return replace(model, trace_head=copy)


def _level_error(squares: np.ndarray) -> float:
    if len(squares) < 2:
        return float("nan")
    mean, spread = squares.mean(), squares.std(ddof=1) / np.sqrt(len(squares))
    return float(np.sqrt(max(mean, 0.0) + spread))


def _loss(head: DiagonalHead, model: Field, points: Points) -> Array:
    def one(t, x, diagonals, cond):
        left = _predicted(replace(model, trace_head=head), t, x, cond) - jnp.mean(diagonals, 0)
        return jnp.sum(left**2) + jnp.sum(left) ** 2

    return jnp.mean(jax.vmap(one)(*points))


@jax.jit
def _errors(model: Field, points: Points) -> Array:
    def one(t, x, diagonals, cond):
        axes = tuple(range(1, diagonals.ndim))
        return jnp.sum(_predicted(model, t, x, cond)) - jnp.sum(diagonals, axes)

    return jax.vmap(one)(*points)


def _predicted(model: Field, t, x, cond) -> Array:
    pair, features = recorded_pair(model, t, x, cond)
    alpha = model.path.alpha(t)
    w = jnp.exp(-0.5 * logsnr(model.path, t))
    assert model.trace_head is not None
    return model.trace_head(features, x / alpha, pair.x0, w)


def _noise(model: Field, t: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * np.asarray(logsnr(model.path, jnp.asarray(t)), np.float64))
