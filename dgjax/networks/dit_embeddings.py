"""The inputs of a diffusion transformer as vectors: patches, positions, time and label.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.inputs import check_label
from dgjax.networks.time_features import Positional, TimestepEmbedding
from dgjax.typing import Cond, Scalar

__all__ = ["Conditioning", "PatchEmbed", "Tokens", "positions"]

Tokens = Float[Array, "1 n d"]  # with the batch axis that flax's layers need


def positions(
    height: int,
    width: int,
    size: int,
    first: tuple[int, int] = (0, 0),
    density: float = 1.0,
) -> np.ndarray:
    """Return the fixed position embedding of each token: sinusoids of its column and its row.

    Args:
        height: rows of tokens.
        width: columns of tokens.
        size: length of a token, a multiple of 4.
        first: row and column of the first token.
        density: rows or columns in one unit of length; the angles are proportional to lengths.

    Returns:
        An array (height * width, size), in float32, with tokens in row-major order.
    """
    rates = 1e4 ** -(np.arange(size // 4) / (size // 4))

    def waves(start: int, count: int) -> np.ndarray:
        # Lengths are rounded to float32 before the sinusoids, as in the tables that files hold.
        lengths = np.arange(start, start + count, dtype=np.float32) / np.float32(density)
        angles = np.outer(lengths, rates)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    rows = np.repeat(waves(first[0], height), width, axis=0)
    columns = np.tile(waves(first[1], width), (height, 1))
    return np.concatenate([columns, rows], axis=1)


class PatchEmbed(nnx.Module):
    """Cut an image into patches, project each to a token, and add the token's position.

    Args:
        channels: channels of the image.
        patch: side of a patch.
        size: length of a token.
        rngs: draws the initial weights.
    """

    def __init__(self, channels: int, patch: int, size: int, *, rngs: nnx.Rngs):
        self.size = size
        self.proj = nnx.Conv(
            channels, size, (patch, patch), strides=patch, padding="VALID", rngs=rngs
        )

    def __call__(self, x: Float[Array, "1 h w c"]) -> Tokens:
        """Return the tokens."""
        h = self.proj(x)
        _, height, width, _ = h.shape
        position = jnp.asarray(positions(height, width, self.size), h.dtype)
        return h.reshape(1, height * width, self.size) + position


class LabelEmbedding(nnx.Module):
    """Look up a vector per label; there is one more for no label.

    Args:
        num_classes: number of labels.
        size: length of a vector.
        rngs: draws the initial weights.
    """

    def __init__(self, num_classes: int, size: int, *, rngs: nnx.Rngs):
        self.embedding_table = nnx.Embed(num_classes + 1, size, rngs=rngs)

    def __call__(self, label: Cond) -> Float[Array, "1 d"]:
        """Return the vector of a label; `num_classes` and None stand for no label."""
        null = self.embedding_table.num_embeddings - 1
        label = null if label is None else label
        check_label(label, null - 1, null)
        return self.embedding_table(jnp.asarray(label)[None])


class Conditioning(nnx.Module):
    """Embed the time step and the label as one vector.

    Args:
        num_classes: number of labels.
        size: length of the vector.
        freq_shift: `shift` of `dgjax.networks.time_features.Positional`.
        rngs: draws the initial weights.
    """

    def __init__(self, num_classes: int, size: int, freq_shift: float, *, rngs: nnx.Rngs):
        self.time_proj = Positional(256, freq_shift, cosines_first=True)
        self.timestep_embedder = TimestepEmbedding(256, size, rngs=rngs)
        self.class_embedder = LabelEmbedding(num_classes, size, rngs=rngs)

    def __call__(self, t: Scalar, label: Cond) -> Float[Array, "1 d"]:
        """Return the vector."""
        return self.timestep_embedder(self.time_proj(t)) + self.class_embedder(label)
