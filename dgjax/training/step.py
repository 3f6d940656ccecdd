"""One step of training, as a pure function of state, batch and key."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

__all__ = ["Batch", "LabelDropout", "Metrics", "TrainState", "initial_state", "make_train_step"]


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


@dataclass(frozen=True)
class LabelDropout:
    """`drop(key, labels (B,)) -> (B,)`: each label is `null` instead with probability `share`.

    So that a conditional network learns the unconditional model too (Ho and Salimans 2022,
    arXiv 2207.12598, algorithm 1).
    """

    share: float
    null: int

    def __call__(self, key: Key, labels: Array) -> Array:
        return jnp.where(jax.random.bernoulli(key, self.share, labels.shape), self.null, labels)


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
    drop_labels: LabelDropout | None = None,
) -> Callable[[TrainState, Batch, Key], tuple[TrainState, Metrics]]:
    """A jitted `train_step(state, batch, key) -> state, metrics`.

    Args:
        model: gives path and parametrization; its weights are not used.
        optimiser: any optax transformation.
        levels: maps u uniform in [0, 1) to the noise level w = sigma/alpha.
        sigma_data: standard deviation of the data, for the loss weight.
        gammas: exponents of the moving averages, as many as the state has.
        drop_labels: applied to the labels of a batch, if there are any.
    """

    def mean_loss(network, batch, key):
        level_key, noise_key = jax.random.split(key)
        w = levels(lattice(level_key, batch.data.shape[0]))
        t = jax.vmap(model.path.time)(-2 * jnp.log(w))
        noise = jax.random.normal(noise_key, batch.data.shape, batch.data.dtype)

        labels = batch.labels
        if labels is not None and drop_labels is not None:
            # A third key that leaves the two above as they are without labels.
            labels = drop_labels(jax.random.fold_in(key, 2), labels)

        def loss(t, data, noise, label):
            current = replace(model, network=network)
            return denoising_loss(current, t, data, noise, label, sigma_data=sigma_data)

        return jnp.mean(jax.vmap(loss)(t, batch.data, noise, labels))

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
