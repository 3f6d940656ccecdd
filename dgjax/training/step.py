"""One step of training, as a pure function of state, batch and key."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from dgjax.model.field import Field
from dgjax.model.parametrization import Network
from dgjax.training import ema
from dgjax.training.importance_sampling import Adaptation
from dgjax.training.noise_distribution import lattice
from dgjax.training.loss import Weighting, denoising_loss
from dgjax.typing import Key, Scalar, register_dataclass

__all__ = [
    "Batch",
    "Differentiated",
    "LabelDropout",
    "Metrics",
    "Objective",
    "Step",
    "TrainState",
    "initial_state",
    "make_train_step",
    "split",
]


class TrainState(NamedTuple):
    """Everything that training changes.

    `averages` are the network's moving averages, `levels` what is known of the noise levels.
    """

    step: Scalar
    network: PyTree[Array]
    optimiser: PyTree[Array]
    averages: tuple[PyTree[Array], ...]
    levels: PyTree[Array] = ()


class Batch(NamedTuple):
    """Data (B, *shape) in the model's coordinates, labels (B,) and augmentations (B,), or None."""

    data: Array
    labels: Array | None = None
    augmentations: Array | None = None


class Metrics(NamedTuple):
    """Of one step: the loss before it and the gradient's norm before clipping."""

    loss: Scalar
    gradient_norm: Scalar


Step = Callable[[TrainState, Batch, Key], tuple[TrainState, Metrics]]

# Of weights, and of draws with leading axes (parts, B/parts): the mean loss, its gradient, and
# the losses (parts, B/parts).
Differentiated = Callable[[PyTree[Array], PyTree[Array]], tuple[Scalar, PyTree[Array], Array]]


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


@register_dataclass
@dataclass(frozen=True)
class InTraining:
    """A network told what only training knows: `extra` are arguments by keyword."""

    network: Network
    extra: dict[str, Any]

    def __call__(self, x, t, cond):
        return self.network(x, t, cond, **self.extra)


class Sampled(NamedTuple):
    """What the losses of a batch depend on, besides the network; leading axis B."""

    data: Array
    noise: Array
    w: Array
    importance: Array
    labels: Array | None
    extra: dict[str, Array]


@dataclass(frozen=True)
class Objective:
    """What a step makes smaller.

    Attributes:
        levels: draws the noise levels.
        weighting: what each counts.
        drop_labels: applied to the labels of a batch, if there are any.
        dropout: whether the network takes a `key` for units it drops in training.
    """

    levels: Adaptation
    weighting: Weighting
    drop_labels: LabelDropout | None = None
    dropout: bool = False

    def sample(self, state: PyTree[Array], batch: Batch, key: Key) -> Sampled:
        """All that is random in a step, drawn for the whole batch at once."""
        level_key, noise_key = jax.random.split(key)
        size = batch.data.shape[0]
        w, importance = self.levels.draw(state, lattice(level_key, size))
        noise = jax.random.normal(noise_key, batch.data.shape, batch.data.dtype)
        labels, extra = batch.labels, {}
        # Further keys that leave the two above as they are without them.
        if labels is not None and self.drop_labels is not None:
            labels = self.drop_labels(jax.random.fold_in(key, 2), labels)
        if self.dropout:
            extra["key"] = jax.random.split(jax.random.fold_in(key, 3), size)
        if batch.augmentations is not None:
            extra["augmentation"] = batch.augmentations
        return Sampled(batch.data, noise, w, importance, labels, extra)

    def losses(self, model: Field, sampled: Sampled) -> Float[Array, " b"]:
        """Weighted losses, before they are weighed by importance."""

        def one(data, noise, w, labels, extra):
            network = InTraining(model.network, extra) if extra else model.network
            current = replace(model, network=network)
            t = model.path.time(-2 * jnp.log(w))
            loss = denoising_loss(current, t, data, noise, labels)
            return self.weighting(w, self.levels.levels.density(w)) * loss

        s = sampled
        return jax.vmap(one)(s.data, s.noise, s.w, s.labels, s.extra)


def initial_state(
    network: PyTree[Array],
    optimiser: optax.GradientTransformation,
    averages: int = 1,
    levels: PyTree[Array] = (),
) -> TrainState:
    """The state before the first step, with room for `averages` moving averages of `network`."""
    copies = tuple(jax.tree.map(jnp.array, network) for _ in range(averages))
    start = jnp.zeros((), jnp.int32)
    return TrainState(start, network, optimiser.init(network), copies, levels)


def make_train_step(
    model: Field,
    optimiser: optax.GradientTransformation,
    objective: Objective,
    *,
    gammas: Sequence[float],
    accumulate: int = 1,
    prepare: Callable[[PyTree[Array]], PyTree[Array]] = lambda network: network,
    spread: Callable[[Differentiated], Differentiated] = lambda function: function,
) -> Step:
    """`train_step(state, batch, key) -> state, metrics`, to be jitted.

    Args:
        model: gives path and parametrization; its weights are not used.
        optimiser: any optax transformation.
        objective: what to minimise.
        gammas: exponents of the moving averages, as many as the state has.
        accumulate: number of parts that a batch is worked through in, one after the other. The
            step is the same but for rounding; activations take this much less memory. On a CPU
            more than one part is many times slower where there are convolutions.
        prepare: what the weights of the state go through before the losses read them, such as
            another precision. It is differentiated.
        spread: what works out the loss and its gradient over several devices, of a function
            that does for the rows it is given.
    """

    def mean_loss(network, sampled):
        losses = objective.losses(replace(model, network=prepare(network)), sampled)
        return jnp.mean(sampled.importance * losses), losses

    with_gradient = jax.value_and_grad(mean_loss, has_aux=True)

    def in_parts(network, sampled):
        """Mean loss, its gradient, and losses in the order of `parts`, from one part at a time."""

        def add(total, part):
            (loss, losses), gradient = with_gradient(network, part)
            return jax.tree.map(jnp.add, total, (loss, gradient)), losses

        if accumulate == 1:  # XLA's CPU compiler leaves a loop's convolutions to its slowest code
            (loss, losses), gradient = with_gradient(network, jax.tree.map(lambda a: a[0], sampled))
            return loss, gradient, losses[None]

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, network))
        total, losses = jax.lax.scan(add, zero, sampled)
        return *jax.tree.map(lambda a: a / accumulate, total), losses

    def train_step(state, batch, key):
        sampled = objective.sample(state.levels, batch, key)
        parts = jax.tree.map(lambda a: split(a, accumulate), sampled)
        loss, gradient, losses = spread(in_parts)(state.network, parts)
        updates, moments = optimiser.update(gradient, state.optimiser, state.network)
        network = optax.apply_updates(state.network, updates)
        step = state.step + 1
        pairs = zip(state.averages, gammas, strict=True)
        averages = tuple(ema.update(average, network, step, gamma) for average, gamma in pairs)
        levels = objective.levels.update(state.levels, parts.w.ravel(), losses.ravel())
        new = TrainState(step, network, moments, averages, levels)
        return new, Metrics(loss, optax.tree.norm(gradient))

    return train_step


def split(a: Array, parts: int) -> Array:
    """(B, ...) to (parts, B/parts, ...), row i to part i mod parts.

    Rows that lie on one device then stay there: each has its share of every part.
    """
    return jnp.moveaxis(a.reshape(-1, parts, *a.shape[1:]), 1, 0)
