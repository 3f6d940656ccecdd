"""One vector that carries the noise level, the class label and the augmentation."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.inputs import check_label
from dgjax.networks.time_features import sinusoids
from dgjax.typing import Cond, Scalar

__all__ = ["Embedding"]

# Angular frequencies for inputs of order one (EDM's log(sigma)/4, or a time in [0, 1]). The lowest
# tells the ends of the range apart, the highest resolves a twentieth of it.
FREQUENCIES = np.geomspace(0.25, 16.0, 32, dtype=np.float32)


class Embedding(nnx.Module):
    """Sinusoids of t through an MLP, plus a learnt vector per label and per augmentation.

    A label of None, or of `num_classes` (so that it can be data), adds no vector. The same holds
    for augmentations. Sampling passes no augmentation: a network trained on mirrored images need
    not draw mirrored ones (EDM, arXiv 2206.00364, appendix F.2).

    Args:
        size: length of the result.
        num_classes: number of labels, or None for a network without labels.
        num_augmentations: number of augmentations, or None for a network without them.
        rngs: draws the initial weights.

    Raises:
        ValueError: if the length or a number is not positive.
    """

    def __init__(
        self,
        size: int,
        num_classes: int | None = None,
        num_augmentations: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        for name, number in (
            ("embedding", size),
            ("num_classes", num_classes),
            ("num_augmentations", num_augmentations),
        ):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be positive, got {number}")
        self.inner = nnx.Linear(2 * FREQUENCIES.size, size, rngs=rngs)
        self.outer = nnx.Linear(size, size, rngs=rngs)
        self.label = None if num_classes is None else nnx.Embed(num_classes, size, rngs=rngs)
        self.augmentation = (
            None if num_augmentations is None else nnx.Embed(num_augmentations, size, rngs=rngs)
        )

    def __call__(
        self, t: Scalar, cond: Cond = None, augmentation: Cond = None
    ) -> Float[Array, " size"]:
        """Return the embedding.

        Args:
            t: the noise level as the network takes it, of order one.
            cond: a class label, or None.
            augmentation: number of an augmentation, or None. A network without augmentations
                ignores it.

        Returns:
            The vector, of length `size`.

        Raises:
            ValueError: if a label is given to a network without labels, or a number is out of
                range.
        """
        h = self.inner(sinusoids(t, jnp.asarray(FREQUENCIES, t.dtype)))
        if cond is not None:
            if self.label is None:
                raise ValueError(
                    "this network takes no class labels: drop cond, or build it with num_classes"
                )
            h = h + _vector(self.label, cond)
        if augmentation is not None and self.augmentation is not None:
            h = h + _vector(self.augmentation, augmentation)
        return nnx.silu(self.outer(nnx.silu(h)))


def _vector(table: nnx.Embed, label: Cond) -> Array:
    """Look up a label; the label after the last gives zeros."""
    null = table.num_embeddings
    check_label(label, null - 1, null)
    dropped = jnp.asarray(label) == null
    # A batch of one, because flax's table of a single vector takes no scalar.
    return jnp.where(dropped, 0.0, table(jnp.where(dropped, 0, label)[None])[0])
