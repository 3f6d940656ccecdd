"""The text encoder of T5 (arXiv 1910.10683), which reads prompts of Stable Diffusion 3 and Flux.

It is that of T5 1.1, whose feed-forward layers have a gate (arXiv 2002.05202).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dgjax.networks.encoded_text import EncodedText, Tokens
from dgjax.typing import concrete

__all__ = ["T5Text"]

Bias = Float[Array, "heads n n"]


class SelfAttention(nnx.Module):
    """Attention of each token to all tokens, with a bias for their distance.

    Args:
        size: length of the vectors.
        heads: number of heads.
        head_size: length of a head's queries, keys and values.
        rngs: draws the initial weights.
    """

    def __init__(self, size: int, heads: int, head_size: int, *, rngs: nnx.Rngs):
        inner = heads * head_size
        self.q = nnx.Linear(size, inner, use_bias=False, rngs=rngs)
        self.k = nnx.Linear(size, inner, use_bias=False, rngs=rngs)
        self.v = nnx.Linear(size, inner, use_bias=False, rngs=rngs)
        self.o = nnx.Linear(inner, size, use_bias=False, rngs=rngs)
        self.heads = heads

    def __call__(self, h: Tokens, bias: Bias) -> Tokens:
        """Apply the layer."""
        query, key, value = (
            layer(h).reshape(1, h.shape[0], self.heads, -1) for layer in (self.q, self.k, self.v)
        )
        # T5 does not divide the logits by the root of the size of a head.
        out = jax.nn.dot_product_attention(query, key, value, bias[None], scale=1.0)
        return self.o(out.reshape(h.shape[0], -1))


class GatedMLP(nnx.Module):
    """A feed-forward layer whose inner values are multiplied by a gate.

    Args:
        size: length of the vectors.
        inner: length between the layers.
        rngs: draws the initial weights.
    """

    def __init__(self, size: int, inner: int, *, rngs: nnx.Rngs):
        self.wi_0 = nnx.Linear(size, inner, use_bias=False, rngs=rngs)
        self.wi_1 = nnx.Linear(size, inner, use_bias=False, rngs=rngs)
        self.wo = nnx.Linear(inner, size, use_bias=False, rngs=rngs)

    def __call__(self, h: Tokens) -> Tokens:
        """Apply the layer."""
        return self.wo(nnx.gelu(self.wi_0(h), approximate=True) * self.wi_1(h))


class Layer(nnx.Module):
    """Attention and a feed-forward layer, each a residual of its normalized input.

    Args:
        size: length of the vectors.
        inner: length inside the feed-forward layer.
        heads: number of attention heads.
        head_size: length of a head's queries, keys and values.
        eps: added to the mean square in normalizations.
        rngs: draws the initial weights.
    """

    def __init__(
        self, size: int, inner: int, heads: int, head_size: int, eps: float, *, rngs: nnx.Rngs
    ):
        self.attention_norm = nnx.RMSNorm(size, epsilon=eps, rngs=rngs)
        self.attention = SelfAttention(size, heads, head_size, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(size, epsilon=eps, rngs=rngs)
        self.mlp = GatedMLP(size, inner, rngs=rngs)

    def __call__(self, h: Tokens, bias: Bias) -> Tokens:
        """Apply the layer."""
        h = h + self.attention(self.attention_norm(h), bias)
        return h + self.mlp(self.mlp_norm(h))


class T5Text(nnx.Module):
    """The text encoder of T5: `encoder(tokens) -> EncodedText` of one prompt.

    It is `T5EncoderModel` of transformers with `feed_forward_proj` "gated-gelu", without a mask:
    tokens that fill up a prompt are read as all others, as Stable Diffusion 3 and Flux do. Vectors
    are in float32 whatever the precision of the weights, as those of float16 overflow.

    Args:
        vocabulary: number of tokens.
        size: length of the vectors.
        inner: length inside the feed-forward layers.
        layers: number of layers.
        heads: number of attention heads.
        head_size: length of a head's queries, keys and values.
        buckets: number of different biases for the distance of two tokens; even.
        furthest: distance from which on all distances have one bias.
        eps: added to the mean square in normalizations.
        rngs: draws the initial weights.

    Raises:
        ValueError: if the buckets are not even, or too many for `furthest`.
    """

    def __init__(
        self,
        vocabulary: int,
        size: int,
        inner: int,
        layers: int,
        heads: int,
        head_size: int,
        buckets: int = 32,
        furthest: int = 128,
        eps: float = 1e-6,
        *,
        rngs: nnx.Rngs,
    ):
        if buckets < 4 or buckets % 2 or furthest <= buckets // 4:
            raise ValueError(
                f"buckets must be an even number from 4 on, and furthest above a quarter of it, "
                f"got {buckets} and {furthest}"
            )
        self.token_embedding = nnx.Embed(vocabulary, size, rngs=rngs)
        self.distance_embedding = nnx.Embed(buckets, heads, rngs=rngs)
        self.layers = nnx.List(
            Layer(size, inner, heads, head_size, eps, rngs=rngs) for _ in range(layers)
        )
        self.final_norm = nnx.RMSNorm(size, epsilon=eps, rngs=rngs)
        self.furthest = furthest

    def __call__(self, tokens: Int[Array, " n"]) -> EncodedText:
        """Encode one prompt.

        Args:
            tokens: whole numbers, with the one that ends the text.

        Returns:
            The vectors of the tokens. `pooled` has length 0.

        Raises:
            ValueError: if the tokens are not those of one prompt, or one is out of range.
        """
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 1:
            raise ValueError(f"tokens have shape {tokens.shape}: this encoder takes one prompt")
        known, rows = concrete(tokens), self.token_embedding.num_embeddings
        if known is not None and not ((known >= 0) & (known < rows)).all():
            raise ValueError(
                f"the tokens go to {known.max()} and this encoder knows {rows}: the tokenizer "
                "belongs to another encoder"
            )
        wide = lambda array: array.astype(jnp.promote_types(array.dtype, jnp.float32))
        buckets = _buckets(tokens.size, self.distance_embedding.num_embeddings, self.furthest)
        bias = wide(self.distance_embedding(jnp.asarray(buckets))).transpose(2, 0, 1)
        h = wide(self.token_embedding(tokens))
        before = h
        for layer in self.layers:
            before, h = h, layer(h, bias)
        return EncodedText(self.final_norm(h), before, jnp.zeros(0, h.dtype))


def _buckets(length: int, buckets: int, furthest: int) -> np.ndarray:
    """Return the number of the bias of each pair of tokens (one that attends, one attended to).

    Half of the biases are for tokens that come later. Of each half, one part is for one distance
    each, and the other for ranges that grow geometrically up to `furthest`.
    """
    each = buckets // 2
    exact = each // 2
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    far = np.maximum(np.abs(distance), exact).astype(np.float32)
    # In float32 as T5 has it: rounding decides about distances at the edges of ranges.
    ranges = np.log(far / exact) / np.float32(math.log(furthest / exact)) * (each - exact)
    ranged = np.minimum(exact + ranges.astype(np.int32), each - 1)
    return each * (distance > 0) + np.where(np.abs(distance) < exact, np.abs(distance), ranged)
