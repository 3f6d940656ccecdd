"""Attention of pixels and a text in one sequence, as in Stable Diffusion 3 and Flux.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.attention import attend
from dgjax.networks.dit_embeddings import Tokens

__all__ = ["Attention", "JointAttention", "Modulation", "Rotation", "modulated"]

Heads = Float[Array, "1 n heads size"]
Vector = Float[Array, " d"]


class Rotation(NamedTuple):
    """Rotary position embedding (arXiv 2104.09864): an angle for each pair of a token's numbers.

    Attributes:
        cos: cosines of the angles, in float32.
        sin: sines of the angles, in float32.
    """

    cos: Float[Array, "n half"]
    sin: Float[Array, "n half"]

    def __call__(self, h: Heads) -> Heads:
        """Rotate neighbouring numbers of each head, in float32 at least."""
        cos, sin = self.cos[:, None], self.sin[:, None]
        even, odd = h[..., ::2], h[..., 1::2]
        pairs = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
        return pairs.reshape(h.shape).astype(h.dtype)


class Modulation(nnx.Module):
    """A layer that makes shifts, scales and gates of a conditioning.

    Args:
        size: length of the conditioning and of each part.
        parts: number of parts.
        rngs: not drawn from, since the initial weights are zeros.
    """

    def __init__(self, size: int, parts: int, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        self.linear = nnx.Linear(size, parts * size, kernel_init=zeros, rngs=rngs)
        self.parts = parts

    def __call__(self, vector: Vector) -> list[Vector]:
        """Return the parts, from a conditioning."""
        return jnp.split(self.linear(nnx.silu(vector)), self.parts)


def modulated(h: Tokens, shift: Vector, scale: Vector) -> Tokens:
    """Scale and shift normalized tokens."""
    return h * (1 + scale) + shift


class Attention(nnx.Module):
    """Self-attention over all tokens, with the heads of queries and keys normalized or not.

    Args:
        heads: number of heads.
        size: length of a token.
        normalized: whether queries and keys are divided by their root mean square, by heads.
        projected: whether a linear layer follows.
        rngs: draws the initial weights.
    """

    def __init__(
        self, heads: int, size: int, normalized: bool, projected: bool = True, *, rngs: nnx.Rngs
    ):
        self.heads = heads
        self.to_q = nnx.Linear(size, size, rngs=rngs)
        self.to_k = nnx.Linear(size, size, rngs=rngs)
        self.to_v = nnx.Linear(size, size, rngs=rngs)
        self.norm_q = head_norm(heads, size, normalized, rngs)
        self.norm_k = head_norm(heads, size, normalized, rngs)
        self.to_out = nnx.List([nnx.Linear(size, size, rngs=rngs)] if projected else [])

    def __call__(self, h: Tokens, rotation: Rotation | None = None) -> Tokens:
        """Apply the layer; `rotation` holds the places of the tokens."""
        query, key, value = self.split(h)
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        out = attend(query, key, value).reshape(h.shape)
        return self.to_out[0](out) if self.to_out else out

    def split(self, h: Tokens) -> tuple[Heads, Heads, Heads]:
        """Return queries, keys and values of the heads."""
        query, key, value = (
            layer(h).reshape(1, h.shape[1], self.heads, -1)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        return normalize(self.norm_q, query), normalize(self.norm_k, key), value


class JointAttention(Attention):
    """Self-attention over the tokens of a text and of an image, with layers of their own for each.

    Args:
        heads: number of heads.
        size: length of a token.
        normalized: whether queries and keys are divided by their root mean square, by heads.
        text_out: whether a linear layer follows for the tokens of the text, too.
        rngs: draws the initial weights.
    """

    def __init__(
        self, heads: int, size: int, normalized: bool, text_out: bool = True, *, rngs: nnx.Rngs
    ):
        super().__init__(heads, size, normalized, rngs=rngs)
        self.add_q_proj = nnx.Linear(size, size, rngs=rngs)
        self.add_k_proj = nnx.Linear(size, size, rngs=rngs)
        self.add_v_proj = nnx.Linear(size, size, rngs=rngs)
        self.norm_added_q = head_norm(heads, size, normalized, rngs)
        self.norm_added_k = head_norm(heads, size, normalized, rngs)
        self.to_add_out = nnx.Linear(size, size, rngs=rngs) if text_out else None

    def both(
        self, text: Tokens, image: Tokens, rotation: Rotation | None = None
    ) -> tuple[Tokens, Tokens]:
        """Apply the layer.

        Args:
            text: tokens of the text.
            image: tokens of the image.
            rotation: the places of the text's tokens, then of the image's.

        Returns:
            Tokens of the text and of the image.
        """
        query, key, value = (
            layer(text).reshape(1, text.shape[1], self.heads, -1)
            for layer in (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        )
        own = (normalize(self.norm_added_q, query), normalize(self.norm_added_k, key), value)
        query, key, value = (
            jnp.concatenate(pair, axis=1) for pair in zip(own, self.split(image), strict=True)
        )
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        out = attend(query, key, value).reshape(1, query.shape[1], -1)
        of_text, of_image = out[:, : text.shape[1]], out[:, text.shape[1] :]
        return (
            of_text if self.to_add_out is None else self.to_add_out(of_text),
            self.to_out[0](of_image),
        )


def head_norm(heads: int, size: int, normalized: bool, rngs: nnx.Rngs) -> nnx.RMSNorm | None:
    """Make the normalization of each head, or None."""
    return nnx.RMSNorm(size // heads, epsilon=1e-6, rngs=rngs) if normalized else None


def normalize(norm: nnx.RMSNorm | None, h: Heads) -> Heads:
    """Normalize heads, where there is a normalization."""
    return h if norm is None else norm(h)
