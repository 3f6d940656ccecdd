"""One optimisation step, as a pure function of training state, batch and random key."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from dgjax.model.field import Field
from dgjax.training import ema
from dgjax.training.objective import Batch, Objective
from dgjax.typing import Key, Scalar

__all__ = [
    "GradientFunction",
    "Metrics",
    "Step",
    "TrainState",
    "initial_state",
    "make_train_step",
    "to_microbatches",
]


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
        step: number of steps taken, int32.
        network: the network; its weights are the leaves.
        optimiser: state of the optax optimiser.
        averages: moving averages of the network, one for each exponent `gamma`.
        noise_sampler: state of the noise sampler.
    """

    step: Scalar
    network: PyTree[Array]
    optimiser: PyTree[Array]
    averages: tuple[PyTree[Array], ...]
    noise_sampler: PyTree[Array] = ()


class Metrics(NamedTuple):
    """Loss, gradient norm and penalty of a step.

    Attributes:
        loss: weighted denoising loss of the batch before the step, without the penalty.
        gradient_norm: of the whole gradient, before clipping.
        penalty: of inconsistency, times its weight; None without one.
    """

    loss: Scalar
    gradient_norm: Scalar
    penalty: Scalar | None = None


Step = Callable[[TrainState, Batch, Key], tuple[TrainState, Metrics]]

# From a network and `LossInputs` with leading axes (microbatches, B/microbatches) to the mean loss,
# with the penalty if there is one, its gradient in the weights, and all losses without the penalty,
# (microbatches, B/microbatches).
GradientFunction = Callable[[PyTree[Array], PyTree[Array]], tuple[Scalar, PyTree[Array], Array]]


def initial_state(
    network: PyTree[Array],
    optimiser: optax.GradientTransformation,
    averages: int = 1,
    noise_sampler: PyTree[Array] = (),
) -> TrainState:
    """Return the training state before the first step.

    Args:
        network: with its initial weights.
        optimiser: any optax optimiser.
        averages: number of moving averages.
        noise_sampler: initial state of the noise sampler.
    """
    copies = tuple(jax.tree.map(jnp.array, network) for _ in range(averages))
    start = jnp.zeros((), jnp.int32)
    return TrainState(start, network, optimiser.init(network), copies, noise_sampler)


def make_train_step(
    model: Field,
    optimiser: optax.GradientTransformation,
    objective: Objective,
    *,
    gammas: Sequence[float],
    accumulate: int = 1,
    cast_weights: Callable[[PyTree[Array]], PyTree[Array]] = lambda network: network,
    distribute: Callable[[GradientFunction], GradientFunction] = lambda function: function,
) -> Step:
    """Make the function `train_step(state, batch, key) -> (state, metrics)`, for `jax.jit`.

    Args:
        model: path and parametrization; its own network is not used.
        optimiser: any optax optimiser.
        objective: the loss to minimise.
        gammas: exponents of the moving averages, as many as the state has averages.
        accumulate: number of microbatches that a batch is divided into, one after the other. Their
            gradients are averaged, so the step is the same up to rounding, and activations take
            this many times less memory. On a CPU more than one is many times slower for networks
            with convolutions.
        cast_weights: differentiable map from the network of the state to the one that computes the
            loss, such as a cast to another precision.
        distribute: maps the gradient function of one device to that of several devices.
    """

    def mean_loss(network, inputs):
        trained = replace(model, network=cast_weights(network))
        losses = objective.losses(trained, inputs)
        return jnp.mean(inputs.importance * losses) + objective.penalty(trained, inputs), losses

    value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)

    def accumulated_gradient(network, microbatches):
        if accumulate == 1:  # without a loop: XLA for CPUs runs convolutions in loops slowly
            inputs = jax.tree.map(lambda a: a[0], microbatches)
            (loss, losses), gradient = value_and_grad(network, inputs)
            return loss, gradient, losses[None]

        def add(total, inputs):
            (loss, losses), gradient = value_and_grad(network, inputs)
            return jax.tree.map(jnp.add, total, (loss, gradient)), losses

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, network))
        total, losses = jax.lax.scan(add, zero, microbatches)
        return *jax.tree.map(lambda a: a / accumulate, total), losses

    def train_step(state, batch, key):
        inputs = objective.draw(state.noise_sampler, batch, key)
        microbatches = jax.tree.map(lambda a: to_microbatches(a, accumulate), inputs)
        loss, gradient, losses = distribute(accumulated_gradient)(state.network, microbatches)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.network)
        network = optax.apply_updates(state.network, updates)
        step = state.step + 1
        averages = tuple(
            ema.update(average, network, step, gamma)
            for average, gamma in zip(state.averages, gammas, strict=True)
        )
        noise_sampler = objective.noise_sampler.update(
            state.noise_sampler, microbatches.w.ravel(), losses.ravel()
        )
        new = TrainState(step, network, optimiser_state, averages, noise_sampler)
        norm = optax.tree.norm(gradient)
        if objective.consistency is None:
            return new, Metrics(loss, norm)
        denoising = jnp.mean(microbatches.importance * losses)
        return new, Metrics(denoising, norm, loss - denoising)

    return train_step


def to_microbatches(a: Array, count: int) -> Array:
    """Reshape (B, ...) to (count, B/count, ...); row i goes to microbatch i mod count.

    A device that holds consecutive rows of the batch then has its share of every microbatch, so no
    rows move between devices.

    Args:
        a: array with the leading axis B.
        count: number of microbatches; must divide B.
    """
    return jnp.moveaxis(a.reshape(-1, count, *a.shape[1:]), 1, 0)
