"""The blocks of a diffusion transformer: attention and MLP, modulated by time and label.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.attention import attend
from dgjax.networks.dit_embeddings import Conditioning, Tokens

__all__ = ["Block", "FeedForward", "layer_norm"]


def layer_norm(
    size: int, rngs: nnx.Rngs, affine: bool = False, epsilon: float = 1e-6
) -> nnx.LayerNorm:
    """Make a normalization of each token, with weights of its own if `affine`."""
    return nnx.LayerNorm(
        size,
        epsilon=epsilon,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,  # a difference that cancels where the mean is large
        rngs=rngs,
    )


class Modulation(nnx.Module):
    """A layer that makes shifts, scales and gates of a conditioning, which may be its own.

    Args:
        size: length of a token.
        emb: makes the conditioning, or None if all blocks have the same one.
        rngs: draws the initial weights.
    """

    def __init__(self, size: int, emb: Conditioning | None, *, rngs: nnx.Rngs):
        self.emb = emb
        self.linear = nnx.Linear(size, 6 * size, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, vector: Float[Array, "1 d"]) -> list[Float[Array, "1 1 d"]]:
        """Return shift, scale and gate of the attention, then of the MLP, from a conditioning."""
        return jnp.split(self.linear(nnx.silu(vector))[:, None], 6, axis=-1)


class Attention(nnx.Module):
    """Self-attention over all tokens.

    Args:
        heads: number of heads.
        size: length of a token.
        bias: whether queries, keys and values have biases.
        rngs: draws the initial weights.
    """

    def __init__(self, heads: int, size: int, bias: bool, *, rngs: nnx.Rngs):
        self.heads = heads
        self.to_q = nnx.Linear(size, size, use_bias=bias, rngs=rngs)
        self.to_k = nnx.Linear(size, size, use_bias=bias, rngs=rngs)
        self.to_v = nnx.Linear(size, size, use_bias=bias, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(size, size, rngs=rngs)])

    def __call__(self, h: Tokens) -> Tokens:
        """Apply the layer."""
        query, key, value = (
            layer(h).reshape(1, h.shape[1], self.heads, -1)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out[0](attend(query, key, value).reshape(h.shape))


class Projection(nnx.Module):
    """A linear layer with GELU.

    Args:
        inputs: length of the input.
        outputs: length of the output.
        approximate: whether GELU is approximated by tanh.
        rngs: draws the initial weights.
    """

    def __init__(self, inputs: int, outputs: int, approximate: bool, *, rngs: nnx.Rngs):
        self.approximate = approximate
        self.proj = nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, h: Tokens) -> Tokens:
        """Apply the layer."""
        return nnx.gelu(self.proj(h), approximate=self.approximate)


class FeedForward(nnx.Module):
    """An MLP on each token, with four times as many hidden units.

    Args:
        size: length of a token.
        approximate: whether GELU is approximated by tanh.
        rngs: draws the initial weights.
    """

    def __init__(self, size: int, approximate: bool, *, rngs: nnx.Rngs):
        # diffusers has dropout at index 1; it is here for the names of the weights, and not called.
        self.net = nnx.List(
            [
                Projection(size, 4 * size, approximate, rngs=rngs),
                nnx.Dropout(0.0),
                nnx.Linear(4 * size, size, rngs=rngs),
            ]
        )

    def __call__(self, h: Tokens) -> Tokens:
        """Apply the MLP."""
        return self.net[2](self.net[0](h))


class Block(nnx.Module):
    """An adaLN-Zero block: attention and MLP, with shifts, scales and gates from a conditioning.

    Args:
        heads: number of attention heads.
        size: length of a token.
        emb: makes the block's own conditioning, or None if all blocks have the same one.
        bias: whether queries, keys and values have biases.
        approximate: whether GELU is approximated by tanh.
        affine: whether the normalization before the MLP has weights of its own.
        epsilon: added to the variance in that normalization.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        heads: int,
        size: int,
        emb: Conditioning | None,
        bias: bool,
        approximate: bool,
        affine: bool,
        epsilon: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm1 = Modulation(size, emb, rngs=rngs)
        self.normalize = layer_norm(size, rngs)
        self.attn1 = Attention(heads, size, bias, rngs=rngs)
        self.norm3 = layer_norm(size, rngs, affine, epsilon)
        self.ff = FeedForward(size, approximate, rngs=rngs)

    def __call__(self, h: Tokens, vector: Float[Array, "1 d"]) -> Tokens:
        """Apply the block; `vector` is the conditioning."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.norm1(vector)
        h = h + gate * self.attn1(self.normalize(h) * (1 + scale) + shift)
        return h + gate_ff * self.ff(self.norm3(h) * (1 + scale_ff) + shift_ff)
