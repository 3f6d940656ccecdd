"""Train a head that predicts the trace of a model's Jacobian, and measure its error.

The head learns from unbiased estimates of the Jacobian's diagonal (`Lessons`), element by element
and in their sum. The model itself does not change, and is not evaluated.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from dgjax.networks.trace_head import DiagonalHead
from dgjax.training.trace_points import Lessons
from dgjax.typing import Key

__all__ = ["calibrate", "distil"]

HELD_OUT = 8  # one of so many points measures the error
LEVELS = 16  # noise levels between which the error is interpolated
BATCH = 256  # points in one call where nothing is trained
Log = Callable[[int, float], None]


def distil(
    lessons: Lessons,
    layers: tuple[str, ...],
    *,
    key: Key,
    steps: int = 4000,
    batch: int = 64,
    learning_rate: float = 2e-3,
    width: int = 64,
    log: Log = lambda step, loss: None,
) -> DiagonalHead:
    """Train a head on the first seven eighths of the points, and measure it on the others.

    The loss of a point is the squared error of the predicted trace plus the sum of the squared
    errors of the diagonal's elements. Both have the true diagonal as their optimum.

    Args:
        lessons: what the head sees, and estimates of what it is to predict.
        layers: names of the layers of the model's network that gave `lessons.features`.
        key: of the head's initial weights and the order of the points.
        steps: number of optimisation steps; the learning rate falls to 0 by a cosine.
        batch: points in one step.
        learning_rate: of Adam, at the start.
        width: channels of the head.
        log: called with the number of each step and its loss.

    Returns:
        The head. `dataclasses.replace(model, trace_head=head)` is the model for `Distilled`.

    Raises:
        ValueError: if there are too few points.
    """
    count = len(lessons.w)
    if count < HELD_OUT * LEVELS:
        raise ValueError(
            f"{count} points are too few to train a head on: give at least {HELD_OUT * LEVELS}"
        )
    split = count - count // HELD_OUT
    head = _fresh(lessons, layers, key, width)
    decay = optax.cosine_decay_schedule(learning_rate, steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    state = optimiser.init(head)

    @jax.jit
    def step(head, state, part, rate):  # the rate is an argument, so `steps` needs no new program
        value, gradient = jax.value_and_grad(_loss)(head, part)
        updates, state = optimiser.update(gradient, state)
        updates = jax.tree.map(lambda update: -rate * update, updates)
        return optax.apply_updates(head, updates), state, value

    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    order = np.zeros(0, int)
    for number in range(steps):
        while len(order) < batch:
            order = np.concatenate([order, draw.permutation(split)])
        rows, order = order[:batch], order[batch:]
        head, state, value = step(head, state, _rows(lessons, rows), decay(number))
        log(number + 1, float(value))
    return calibrate(head, _rows(lessons, np.arange(split, count)))


def calibrate(head: DiagonalHead, lessons: Lessons) -> DiagonalHead:
    """Measure the error of a head at each noise level, and return the head with these errors.

    The product of two errors, each against its own estimate of the trace, has the squared error as
    its mean: the noise of the estimates drops out. One standard error of that mean is added.

    Args:
        head: the head.
        lessons: points that the head was not trained on.
    """
    parts = [
        _errors(head, _rows(lessons, np.arange(i, min(i + BATCH, len(lessons.w)))))
        for i in range(0, len(lessons.w), BATCH)
    ]
    errors = np.concatenate([np.asarray(part, np.float64) for part in parts])
    squares, log_w = errors[:, 0] * errors[:, 1], np.log(lessons.w)
    edges = np.linspace(log_w.min(), log_w.max(), LEVELS + 1)
    level = np.clip(np.digitize(log_w, edges) - 1, 0, LEVELS - 1)
    found = np.array([_level_error(squares[level == i]) for i in range(LEVELS)])
    found[np.isnan(found)] = np.nanmax(found)
    measured = nnx.clone(head)
    measured.log_levels[...] = jnp.asarray(0.5 * (edges[1:] + edges[:-1]), jnp.float32)
    measured.errors[...] = jnp.asarray(found, jnp.float32)
    return measured


def _fresh(lessons: Lessons, layers: tuple[str, ...], key: Key, width: int) -> DiagonalHead:
    least = np.argsort(lessons.w)[: max(1, len(lessons.w) // 10)]  # the least noisy tenth
    variance = np.var(lessons.y[least]) - np.mean(lessons.w[least] ** 2)
    return DiagonalHead(
        lessons.y.shape[1:],
        layers,
        tuple(feature.shape[1:] for feature in lessons.features),
        float(np.sqrt(max(variance, 1e-6))),
        width,
        LEVELS,
        rngs=nnx.Rngs(int(jax.random.randint(key, (), 0, 2**31 - 1))),
    )


def _rows(lessons: Lessons, rows: np.ndarray) -> Lessons:
    return jax.tree.map(lambda a: jnp.asarray(a[rows], jnp.float32), lessons)


def _level_error(squares: np.ndarray) -> float:
    if len(squares) < 2:
        return float("nan")
    spread = squares.std(ddof=1) / np.sqrt(len(squares))
    return float(np.sqrt(max(squares.mean(), 0.0) + spread))


def _loss(head: DiagonalHead, lessons: Lessons) -> Array:
    left = _predicted(head, lessons) - jnp.mean(lessons.diagonals, 1)
    return jnp.mean(jnp.sum(left, _elements(left)) ** 2 + jnp.sum(left**2, _elements(left)))


@jax.jit
def _errors(head: DiagonalHead, lessons: Lessons) -> Array:
    left = _predicted(head, lessons)[:, None] - lessons.diagonals
    return jnp.sum(left, tuple(range(2, left.ndim)))


def _predicted(head: DiagonalHead, lessons: Lessons) -> Array:
    return jax.vmap(head)(lessons.features, lessons.y, lessons.x0, lessons.w)


def _elements(a: Array) -> tuple[int, ...]:
    return tuple(range(1, a.ndim))
