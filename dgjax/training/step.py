"""One step of training, as a pure function of state, batch and key."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from dgjax.fields import Field
from dgjax.training import ema
from dgjax.training.levels import lattice
from dgjax.training.loss import denoising_loss
from dgjax.typing import Key, Scalar

__all__ = ["Batch", "Metrics", "TrainState", "initial_state", "make_train_step"]


class TrainState(NamedTuple):
    """Everything that training changes; `average` is the moving average of the network."""

    step: Scalar
    network: PyTree[Array]
    optimiser: PyTree[Array]
    average: PyTree[Array]


class Batch(NamedTuple):
    """Data (B, *shape) in the model's coordinates and labels (B,), or None."""

    data: Array
    labels: Array | None = None


class Metrics(NamedTuple):
    """Of one step: the loss before it and the gradient's norm before clipping."""

    loss: Scalar
    gradient_norm: Scalar


def initial_state(model: Field, optimiser: optax.GradientTransformation) -> TrainState:
    """The state before the first step, with `model`'s weights."""
    network = model.network
    copy = jax.tree.map(jnp.array, network)
    return TrainState(jnp.zeros((), jnp.int32), network, optimiser.init(network), copy)


def make_train_step(
    model: Field,
    optimiser: optax.GradientTransformation,
    levels: Callable[[Array], Array],
    *,
    sigma_data: float,
    gamma: float,
) -> Callable[[TrainState, Batch, Key], tuple[TrainState, Metrics]]:
    """A jitted `train_step(state, batch, key) -> state, metrics`.

    Args:
        model: gives path and parametrization; its weights are not used.
        optimiser: any optax transformation.
        levels: maps u uniform in [0, 1) to the noise level w = sigma/alpha.
        sigma_data: standard deviation of the data, for the loss weight.
        gamma: exponent of the moving average.
    """

    def mean_loss(network, batch, key):
        level_key, noise_key = jax.random.split(key)
        w = levels(lattice(level_key, batch.data.shape[0]))
        t = jax.vmap(model.path.time)(-2 * jnp.log(w))
        noise = jax.random.normal(noise_key, batch.data.shape, batch.data.dtype)

        def loss(t, data, noise, label):
            current = replace(model, network=network)
            return denoising_loss(current, t, data, noise, label, sigma_data=sigma_data)

        return jnp.mean(jax.vmap(loss)(t, batch.data, noise, batch.labels))

    @jax.jit
    def train_step(state, batch, key):
        loss, gradient = jax.value_and_grad(mean_loss)(state.network, batch, key)
        updates, moments = optimiser.update(gradient, state.optimiser, state.network)
        network = optax.apply_updates(state.network, updates)
        step = state.step + 1
        average = ema.update(state.average, network, step, gamma)
        new = TrainState(step, network, moments, average)
        return new, Metrics(loss, optax.tree.norm(gradient))

    return train_step
