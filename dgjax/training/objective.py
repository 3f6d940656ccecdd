"""The training loss: what a step draws at random, and the losses of the drawn samples."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dgjax.model.field import Field
from dgjax.model.parametrization import Network
from dgjax.training.consistency import Consistency, consistency_loss
from dgjax.training.importance_sampling import NoiseSampler
from dgjax.training.loss import Weighting, denoising_loss
from dgjax.training.noise_distribution import low_discrepancy_draw
from dgjax.training.time_score import TimeScore, dual_loss
from dgjax.typing import Key, Scalar, register_dataclass

__all__ = ["Batch", "LabelDropout", "LossInputs", "Objective"]


class Batch(NamedTuple):
    """Clean samples and what the network is told of them.

    Attributes:
        data: samples in the model's coordinates, (B, *shape).
        labels: class labels, (B,), or None.
        augmentations: number of the augmentation applied to each sample, (B,), or None.
    """

    data: Array
    labels: Array | None = None
    augmentations: Array | None = None


@dataclass(frozen=True)
class LabelDropout:
    """Replace each label by the null label with a given probability.

    A conditional network then learns the unconditional model too (classifier-free guidance, arXiv
    2207.12598, algorithm 1).

    Attributes:
        share: probability that a label is replaced.
        null: the label that stands for "no label".
    """

    share: float
    null: int

    def __call__(self, key: Key, labels: Array) -> Array:
        """Return the labels (B,), some of them replaced."""
        return jnp.where(jax.random.bernoulli(key, self.share, labels.shape), self.null, labels)


@register_dataclass
@dataclass(frozen=True)
class _WithKeywords:
    """A network whose extra keyword arguments are already given."""

    network: Network
    keywords: dict[str, Any]

    def __call__(self, x, t, cond):
        return self.network(x, t, cond, **self.keywords)


class LossInputs(NamedTuple):
    """All inputs of the loss except the network; every array has the leading axis B.

    Attributes:
        data: clean samples, (B, *shape).
        noise: standard normal noise, (B, *shape).
        w: noise levels sigma/alpha, (B,).
        importance: importance weights of the noise levels, (B,).
        labels: labels after label dropout, (B,), or None.
        keywords: further arguments of the network, by name: dropout keys, augmentations.
        probe_keys: random keys for the probes of the penalty, (B,), or None.
    """

    data: Array
    noise: Array
    w: Array
    importance: Array
    labels: Array | None
    keywords: dict[str, Array]
    probe_keys: Array | None = None


@dataclass(frozen=True)
class Objective:
    """The training loss: what is drawn at random, and how losses are weighted.

    Attributes:
        noise_sampler: draws the noise levels.
        weighting: weight of the squared error at each noise level.
        drop_labels: label dropout, for batches with labels; None for none.
        dropout: whether the network takes a random `key` for dropout of its units.
        time_score: time-score matching, for energy models; None for none.
        consistency: penalty on the inconsistency of the score; None for none.
    """

    noise_sampler: NoiseSampler
    weighting: Weighting
    drop_labels: LabelDropout | None = None
    dropout: bool = False
    time_score: TimeScore | None = None
    consistency: Consistency | None = None

    def draw(self, state: PyTree[Array], batch: Batch, key: Key) -> LossInputs:
        """Draw everything that is random in a step, for the whole batch at once.

        Args:
            state: of the noise sampler.
            batch: the clean samples.
            key: random key of the step.

        Returns:
            The inputs of `losses` and `penalty`.
        """
        level_key, noise_key = jax.random.split(key)
        size = batch.data.shape[0]
        w, importance = self.noise_sampler.draw(state, low_discrepancy_draw(level_key, size))
        noise = jax.random.normal(noise_key, batch.data.shape, batch.data.dtype)
        labels, keywords = batch.labels, {}
        # Keys by `fold_in`, so that noise levels and noise do not depend on these options.
        if labels is not None and self.drop_labels is not None:
            labels = self.drop_labels(jax.random.fold_in(key, 2), labels)
        if self.dropout:
            keywords["key"] = jax.random.split(jax.random.fold_in(key, 3), size)
        if batch.augmentations is not None:
            keywords["augmentation"] = batch.augmentations
        probe_keys = None
        if self.consistency is not None:
            probe_keys = jax.random.split(jax.random.fold_in(key, 4), size)
        return LossInputs(batch.data, noise, w, importance, labels, keywords, probe_keys)

    def losses(self, model: Field, inputs: LossInputs) -> Float[Array, " b"]:
        """Return the weighted loss of every sample, without importance weights.

        Args:
            model: with the network to train.
            inputs: drawn by `draw`.

        Returns:
            Losses (B,).
        """

        def one(data, noise, w, labels, keywords):
            trained = _with_keywords(model, keywords)
            if self.time_score is None:
                t = model.path.time(-2 * jnp.log(w))
                loss = denoising_loss(trained, t, data, noise, labels)
            else:
                weight = self.time_score.weight
                loss = dual_loss(trained, w, data, noise, labels, weight=weight)
            return self.weighting(w, self.noise_sampler.distribution.density(w)) * loss

        i = inputs
        return jax.vmap(one)(i.data, i.noise, i.w, i.labels, i.keywords)

    def penalty(self, model: Field, inputs: LossInputs) -> Scalar:
        """Return the mean penalty on the inconsistency of the score, times its weight.

        Args:
            model: with the network to train.
            inputs: drawn by `draw`. Neighbours have neighbouring noise levels, so that one of every
                so many rows still has all of them.

        Returns:
            The penalty, 0 without one.
        """
        if self.consistency is None:
            return jnp.zeros(())
        weight, every = self.consistency.weight, self.consistency.every

        def one(i):
            trained, t = _with_keywords(model, i.keywords), model.path.time(-2 * jnp.log(i.w))
            loss = consistency_loss(trained, t, i.data, i.noise, i.probe_keys, i.labels)
            return i.importance * loss

        return weight * jnp.mean(jax.vmap(one)(jax.tree.map(lambda a: a[::every], inputs)))


def _with_keywords(model: Field, keywords: dict[str, Any]) -> Field:
    """Return the model whose network has these keyword arguments."""
    return replace(model, network=_WithKeywords(model.network, keywords)) if keywords else model
