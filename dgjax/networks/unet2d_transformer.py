"""Transformer blocks of `UNet2DCondition`: pixels attend to each other, then to a text.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from dgjax.networks.attention import attend_in_chunks
from dgjax.networks.unet2d_parts import Image, conv, group_norm

__all__ = ["Context", "Transformer2D", "TransformerSettings"]

Tokens = Float[Array, "1 n c"]  # with the batch axis that attention needs


class Context(NamedTuple):
    """A sequence that the pixels attend to, such as the embeddings of a text.

    Attributes:
        tokens: one vector per token.
        mask: which tokens are attended to; None for all.
    """

    tokens: Tokens
    mask: Bool[Array, " n"] | None = None


@dataclass(frozen=True)
class TransformerSettings:
    """Settings of the transformers of one level.

    Attributes:
        heads: number of attention heads; it divides the channels.
        layers: number of transformer blocks.
        context: length of the vectors that are attended to.
        linear: whether the channels are projected by linear layers, or by 1x1 convolutions.
    """

    heads: int
    layers: int
    context: int
    linear: bool


class CrossAttention(nnx.Module):
    """Attention from one sequence to another.

    Scores and softmax are computed in float32 at least, whatever the dtype of the tokens. Many
    pixels are computed in chunks, by `dgjax.networks.attention.attend_in_chunks`.

    Args:
        size: length of the vectors that attend.
        context: length of the vectors that are attended to.
        heads: number of heads; it divides `size`.
        rngs: draws the initial weights.
    """

    def __init__(self, size: int, context: int, heads: int, *, rngs: nnx.Rngs):
        if heads < 1 or size % heads:
            raise ValueError(f"{heads} attention heads do not divide {size} channels")
        self.to_q = nnx.Linear(size, size, use_bias=False, rngs=rngs)
        self.to_k = nnx.Linear(context, size, use_bias=False, rngs=rngs)
        self.to_v = nnx.Linear(context, size, use_bias=False, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(size, size, rngs=rngs)])
        self.heads = heads

    def __call__(self, h: Tokens, context: Context) -> Tokens:
        """Apply the layer."""
        query, key, value = (
            layer(tokens).reshape(*tokens.shape[:2], self.heads, -1)
            for layer, tokens in (
                (self.to_q, h),
                (self.to_k, context.tokens),
                (self.to_v, context.tokens),
            )
        )
        mask = None if context.mask is None else context.mask[None, None, None]
        out = attend_in_chunks(
            lambda query: jax.nn.dot_product_attention(query, key, value, mask=mask),
            query,
            key.shape[1],
        )
        return self.to_out[0](out.reshape(h.shape))


class FeedForward(nnx.Module):
    """Two linear layers, with half of the first's output multiplied by GELU of the other half.

    Args:
        size: length of the vectors.
        rngs: draws the initial weights.
    """

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.proj_in = nnx.Linear(size, 8 * size, rngs=rngs)
        self.proj_out = nnx.Linear(4 * size, size, rngs=rngs)

    def __call__(self, h: Tokens) -> Tokens:
        """Apply the layers."""
        h, gate = jnp.split(self.proj_in(h), 2, axis=-1)
        return self.proj_out(h * nnx.gelu(gate, approximate=False))


class TransformerBlock(nnx.Module):
    """Self-attention, attention to the context and a feed-forward layer, each a residual.

    Args:
        size: length of the vectors.
        settings: of the level.
        rngs: draws the initial weights.
    """

    def __init__(self, size: int, settings: TransformerSettings, *, rngs: nnx.Rngs):
        # The fast variance is a difference of two squares, which cancels where the mean is large.
        norm = partial(nnx.LayerNorm, size, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.norm1 = norm()
        self.attn1 = CrossAttention(size, size, settings.heads, rngs=rngs)
        self.norm2 = norm()
        self.attn2 = CrossAttention(size, settings.context, settings.heads, rngs=rngs)
        self.norm3 = norm()
        self.ff = FeedForward(size, rngs=rngs)

    def __call__(self, h: Tokens, context: Context) -> Tokens:
        """Apply the block."""
        own = self.norm1(h)
        h = h + self.attn1(own, Context(own))
        h = h + self.attn2(self.norm2(h), context)
        return h + self.ff(self.norm3(h))


class Transformer2D(nnx.Module):
    """Residual of transformer blocks whose tokens are the pixels.

    Args:
        channels: channels of input and output.
        groups: groups of the normalization.
        settings: of the level.
        rngs: draws the initial weights.
    """

    def __init__(
        self, channels: int, groups: int, settings: TransformerSettings, *, rngs: nnx.Rngs
    ):
        self.norm = group_norm(channels, groups, 1e-6, rngs)

        def project() -> nnx.Linear | nnx.Conv:
            if settings.linear:
                return nnx.Linear(channels, channels, rngs=rngs)
            return conv(channels, channels, rngs, 1)

        self.proj_in = project()
        self.transformer_blocks = nnx.List(
            TransformerBlock(channels, settings, rngs=rngs) for _ in range(settings.layers)
        )
        self.proj_out = project()

    def __call__(self, h: Image, context: Context) -> Image:
        """Apply the layers."""
        # A 1x1 convolution of an image and a linear layer of its pixels are applied alike.
        tokens = self.proj_in(self.norm(h)).reshape(1, -1, h.shape[-1])
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return h + self.proj_out(tokens.reshape(h.shape))
