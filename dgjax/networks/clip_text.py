"""The text encoders of CLIP (arXiv 2103.00020), which read the prompts of Stable Diffusion.

The attributes that hold weights have the names of the modules of the library transformers, because
checkpoints are read by these names.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from dgjax.networks.encoded_text import EncodedText, Tokens
from dgjax.typing import concrete

__all__ = ["CLIPText"]

# OpenAI's CLIP has the first, OpenCLIP the second.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda h: h * jax.nn.sigmoid(1.702 * h),
    "gelu": partial(nnx.gelu, approximate=False),
}


class SelfAttention(nnx.Module):
    """Attention of each token to itself and to those before.

    Args:
        size: length of the vectors.
        heads: number of heads; it divides `size`.
        rngs: draws the initial weights.
    """

    def __init__(self, size: int, heads: int, *, rngs: nnx.Rngs):
        self.q_proj = nnx.Linear(size, size, rngs=rngs)
        self.k_proj = nnx.Linear(size, size, rngs=rngs)
        self.v_proj = nnx.Linear(size, size, rngs=rngs)
        self.out_proj = nnx.Linear(size, size, rngs=rngs)
        self.heads = heads

    def __call__(self, h: Tokens) -> Tokens:
        """Apply the layer."""
        query, key, value = (
            layer(h).reshape(1, h.shape[0], self.heads, -1)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(out.reshape(h.shape))


class MLP(nnx.Module):
    """Two linear layers with an activation between them.

    Args:
        size: length of the vectors.
        inner: length between the layers.
        activation: a name in `ACTIVATIONS`.
        rngs: draws the initial weights.
    """

    def __init__(self, size: int, inner: int, activation: str, *, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(size, inner, rngs=rngs)
        self.fc2 = nnx.Linear(inner, size, rngs=rngs)
        self.activation = activation

    def __call__(self, h: Tokens) -> Tokens:
        """Apply the layers."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(h)))


class Layer(nnx.Module):
    """Attention and a feed-forward layer, each a residual of its normalized input.

    Args:
        size: length of the vectors.
        inner: length inside the feed-forward layer.
        heads: number of attention heads.
        activation: a name in `ACTIVATIONS`.
        eps: added to the variance in normalizations.
        rngs: draws the initial weights.
    """

    def __init__(
        self, size: int, inner: int, heads: int, activation: str, eps: float, *, rngs: nnx.Rngs
    ):
        self.layer_norm1 = _norm(size, eps, rngs)
        self.self_attn = SelfAttention(size, heads, rngs=rngs)
        self.layer_norm2 = _norm(size, eps, rngs)
        self.mlp = MLP(size, inner, activation, rngs=rngs)

    def __call__(self, h: Tokens) -> Tokens:
        """Apply the layer."""
        h = h + self.self_attn(self.layer_norm1(h))
        return h + self.mlp(self.layer_norm2(h))


class CLIPText(nnx.Module):
    """The text encoder of CLIP: `encoder(tokens) -> EncodedText` of one prompt.

    It is `CLIPTextModel` of transformers, and with a `projection` `CLIPTextModelWithProjection`.
    Vectors are in float32 whatever the precision of the weights.

    Args:
        vocabulary: number of tokens.
        length: most tokens of a prompt.
        size: length of the vectors.
        inner: length inside the feed-forward layers.
        layers: number of layers.
        heads: number of attention heads; it divides `size`.
        activation: "quick_gelu" or "gelu".
        eps: added to the variance in normalizations.
        end: the token that ends a text: `pooled` is taken where it comes first; None takes the
            greatest token.
        projection: length of the projected `pooled`, or None for no projection.
        rngs: draws the initial weights.

    Raises:
        ValueError: if the activation is unknown, or the heads do not divide the size.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        size: int,
        inner: int,
        layers: int,
        heads: int,
        activation: str,
        eps: float = 1e-5,
        end: int | None = None,
        projection: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {activation!r} is unknown: expected one of {', '.join(ACTIVATIONS)}"
            )
        if heads < 1 or size % heads:
            raise ValueError(f"{heads} attention heads do not divide {size} channels")
        self.token_embedding = nnx.Embed(vocabulary, size, rngs=rngs)
        self.position_embedding = nnx.Embed(length, size, rngs=rngs)
        self.layers = nnx.List(
            Layer(size, inner, heads, activation, eps, rngs=rngs) for _ in range(layers)
        )
        self.final_layer_norm = _norm(size, eps, rngs)
        self.text_projection = (
            None if projection is None else nnx.Linear(size, projection, use_bias=False, rngs=rngs)
        )
        self.end = end

    def __call__(self, tokens: Int[Array, " n"]) -> EncodedText:
        """Encode one prompt.

        Args:
            tokens: whole numbers, with those that begin and end the text.

        Returns:
            The vectors of the tokens and of the text. `pooled` is the last vector of the token
            that ends the text; projected if there is a projection.

        Raises:
            ValueError: if there are too many tokens, or one is out of range.
        """
        tokens = jnp.asarray(tokens)
        rows, length = self.token_embedding.num_embeddings, self.position_embedding.num_embeddings
        if tokens.ndim != 1 or tokens.size > length:
            raise ValueError(
                f"tokens have shape {tokens.shape}: this encoder takes one prompt of at most "
                f"{length} tokens"
            )
        known = concrete(tokens)
        if known is not None and not ((known >= 0) & (known < rows)).all():
            raise ValueError(
                f"the tokens go to {known.max()} and this encoder knows {rows}: the tokenizer "
                "belongs to another encoder"
            )
        h = self.token_embedding(tokens) + self.position_embedding(jnp.arange(tokens.size))
        before = h
        for layer in self.layers:
            before, h = h, layer(h)
        last = self.final_layer_norm(h)
        at = jnp.argmax(tokens if self.end is None else tokens == self.end)
        pooled = last[at]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        return EncodedText(last, before, pooled)


def _norm(size: int, eps: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance is a difference of two squares, which cancels where the mean is large.
    return nnx.LayerNorm(size, epsilon=eps, use_fast_variance=False, rngs=rngs)
