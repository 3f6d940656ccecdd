"""One step of training, as a pure function of state, batch and key."""

from collections.abc import Callable, Sequence
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
    """Everything that training changes; `averages` are the network's moving averages."""

    step: Scalar
    network: PyTree[Array]
    optimiser: PyTree[Array]
    averages: tuple[PyTree[Array], ...]


class Batch(NamedTuple):
    """Data (B, *shape) in the model's coordinates and labels (B,), or None."""

    data: Array
    labels: Array | None = None


class Metrics(NamedTuple):
    """Of one step: the loss before it and the gradient's norm before clipping."""

    loss: Scalar
    gradient_norm: Scalar


def initial_state(
    model: Field, optimiser: optax.GradientTransformation, averages: int = 1
) -> TrainState:
    """The state before the first step, with `model`'s weights and room for `averages` of them."""
    network = model.network
    copies = tuple(jax.tree.map(jnp.array, network) for _ in range(averages))
    return TrainState(jnp.zeros((), jnp.int32), network, optimiser.init(network), copies)


def make_train_step(
    model: Field,
    optimiser: optax.GradientTransformation,
    levels: Callable[[Array], Array],
    *,
    sigma_data: float,
    gammas: Sequence[float],
) -> Callable[[TrainState, Batch, Key], tuple[TrainState, Metrics]]:
    """A jitted `train_step(state, batch, key) -> state, metrics`.

    Args:
        model: gives path and parametrization; its weights are not used.
        optimiser: any optax transformation.
        levels: maps u uniform in [0, 1) to the noise level w = sigma/alpha.
        sigma_data: standard deviation of the data, for the loss weight.
        gammas: exponents of the moving averages, as many as the state has.
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
        pairs = zip(state.averages, gammas, strict=True)
        averages = tuple(ema.update(average, network, step, gamma) for average, gamma in pairs)
        new = TrainState(step, network, moments, averages)
        return new, Metrics(loss, optax.tree.norm(gradient))

    return train_step
