"""The noise level and the class label as one vector."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from dgjax.typing import Cond, Scalar, known

__all__ = ["Embedding"]

# Angular frequencies for inputs of order one (EDM's log(w)/4, or a time in [0, 1]): the lowest
# tells the ends of the range apart, the highest resolves a twentieth of it.
FREQUENCIES = np.geomspace(0.25, 16.0, 32, dtype=np.float32)


class Embedding(nnx.Module):
    """`embed(t, cond) -> (size,)`: sinusoids of t, plus a learnt vector per label, then an MLP.

    No label adds no vector. It is `cond` None, or the number `num_classes`, which can be data.

    Args:
        size: length of the result.
        num_classes: number of labels, or None for a network that takes none.
    """

    def __init__(self, size: int, num_classes: int | None = None, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(2 * FREQUENCIES.size, size, rngs=rngs)
        self.outer = nnx.Linear(size, size, rngs=rngs)
        self.label = None if num_classes is None else nnx.Embed(num_classes, size, rngs=rngs)

    def __call__(self, t: Scalar, cond: Cond = None) -> Array:
        angles = t * jnp.asarray(FREQUENCIES, t.dtype)
        h = self.inner(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]))
        if cond is not None:
            if self.label is None:
                raise ValueError(
                    "this network takes no class labels: drop cond, or build it with num_classes"
                )
            h = h + _vector(self.label, cond)
        return nnx.silu(self.outer(nnx.silu(h)))


def _vector(vectors: nnx.Embed, label: Cond) -> Array:
    null, number = vectors.num_embeddings, known(label)
    if number is not None and not ((number >= 0) & (number <= null)).all():
        raise ValueError(
            f"label {number} is out of range: this network takes 0 to {null - 1}, or {null} "
            "for no label"
        )
    dropped = jnp.asarray(label) == null
    return jnp.where(dropped, 0.0, vectors(jnp.where(dropped, 0, label)))
