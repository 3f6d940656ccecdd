"""The noise level, the class label and the augmentation as one vector."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from dgjax.networks.inputs import check_label
from dgjax.typing import Cond, Scalar

__all__ = ["Embedding"]

# Angular frequencies for inputs of order one (EDM's log(w)/4, or a time in [0, 1]): the lowest
# tells the ends of the range apart, the highest resolves a twentieth of it.
FREQUENCIES = np.geomspace(0.25, 16.0, 32, dtype=np.float32)


class Embedding(nnx.Module):
    """`embed(t, cond, augmentation) -> (size,)`: sinusoids and learnt vectors, then an MLP.

    No label adds no vector. It is `cond` None, or the number `num_classes`, which can be data;
    likewise no augmentation. Samples are asked for without one, so that training on images that
    were mirrored, say, need not yield mirrored samples (Karras et al. 2022, appendix F.2).

    Args:
        size: length of the result.
        num_classes: number of labels, or None for a network that takes none.
        num_augmentations: number of augmentations, or None for a network that is told of none.
    """

    def __init__(
        self,
        size: int,
        num_classes: int | None = None,
        num_augmentations: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.inner = nnx.Linear(2 * FREQUENCIES.size, size, rngs=rngs)
        self.outer = nnx.Linear(size, size, rngs=rngs)
        self.label = None if num_classes is None else nnx.Embed(num_classes, size, rngs=rngs)
        self.augmentation = (
            None if num_augmentations is None else nnx.Embed(num_augmentations, size, rngs=rngs)
        )

    def __call__(self, t: Scalar, cond: Cond = None, augmentation: Cond = None) -> Array:
        angles = t * jnp.asarray(FREQUENCIES, t.dtype)
        h = self.inner(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]))
        if cond is not None:
            if self.label is None:
                raise ValueError(
                    "this network takes no class labels: drop cond, or build it with num_classes"
                )
            h = h + _vector(self.label, cond)
        if augmentation is not None and self.augmentation is not None:
            h = h + _vector(self.augmentation, augmentation)
        return nnx.silu(self.outer(nnx.silu(h)))


def _vector(vectors: nnx.Embed, label: Cond) -> Array:
    null = vectors.num_embeddings
    check_label(label, null - 1, null)
    dropped = jnp.asarray(label) == null
    # As a batch of one, because flax's table of a single vector takes no scalar.
    return jnp.where(dropped, 0.0, vectors(jnp.where(dropped, 0, label)[None])[0])
