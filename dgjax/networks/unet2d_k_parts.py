"""Parts of K blocks: residual blocks, attention and resampling.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dgjax.networks.normalization import GroupNorm
from dgjax.networks.unet2d_parts import ACTIVATIONS, BlockSettings, Image, conv, fir_down, fir_up
from dgjax.networks.unet2d_transformer import Context

__all__ = ["KAttention", "KResnet", "double", "halve"]

GROUP = 32  # channels of a group of the normalizations
ATTENTION_EPS = 1e-5  # in the normalizations of attention, whatever the network's settings


class AdaGroupNorm(nnx.Module):
    """Group normalization that the embedding scales and shifts.

    Args:
        channels: channels of input and output.
        groups: number of groups.
        eps: added to the variance.
        embedding: length of the embedding.
        rngs: draws the initial weights.
    """

    def __init__(self, channels: int, groups: int, eps: float, embedding: int, *, rngs: nnx.Rngs):
        if groups < 1 or channels % groups:
            raise ValueError(
                f"{channels} channels of a K block do not fit {groups} groups: each of its levels "
                f"takes a multiple of {GROUP} channels, or one that divides so"
            )
        self.linear = nnx.Linear(embedding, 2 * channels, rngs=rngs)
        self.norm = GroupNorm(
            channels,
            num_groups=groups,
            epsilon=eps,
            use_bias=False,
            use_scale=False,
            use_fast_variance=False,
            rngs=rngs,
        )

    def __call__(self, h: Image, embedding: Array) -> Image:
        """Apply the layer."""
        factor, shift = jnp.split(self.linear(embedding), 2)
        return self.norm(h) * (1 + factor) + shift


class KResnet(nnx.Module):
    """Residual block of two 3x3 convolutions; the embedding scales and shifts its normalizations.

    Args:
        inputs: channels of the input.
        inner: channels between the convolutions.
        outputs: channels of the output.
        settings: of all blocks of the network.
        grouped: channels by which the groups of the second normalization are counted; unless
            given, `inner`.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        settings: BlockSettings,
        grouped: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        size, eps = settings.embedding or 0, settings.eps
        second = (inner if grouped is None else grouped) // GROUP
        self.norm1 = AdaGroupNorm(inputs, inputs // GROUP, eps, size, rngs=rngs)
        self.conv1 = conv(inputs, inner, rngs)
        self.norm2 = AdaGroupNorm(inner, second, eps, size, rngs=rngs)
        self.conv2 = conv(inner, outputs, rngs)
        self.conv_shortcut = (
            None
            if inputs == outputs
            else nnx.Conv(inputs, outputs, (1, 1), use_bias=False, rngs=rngs)
        )
        self.activation = ACTIVATIONS[settings.activation]

    def __call__(self, h: Image, embedding: Array) -> Image:
        """Apply the block."""
        out = self.conv1(self.activation(self.norm1(h, embedding)))
        out = self.conv2(self.activation(self.norm2(out, embedding)))
        return out + (h if self.conv_shortcut is None else self.conv_shortcut(h))


class KHeads(nnx.Module):
    """Attention from pixels to a sequence, or to each other.

    Args:
        size: channels of the pixels.
        context: length of the vectors of a sequence, which are normalized; None for no sequence.
        normalized: whether there is a normalization of the sequence.
        head: channels of a head.
        rngs: draws the initial weights.
    """

    def __init__(
        self, size: int, context: int | None, normalized: bool, head: int, *, rngs: nnx.Rngs
    ):
        if head < 1 or head > size:
            raise ValueError(f"attention heads of {head} channels do not fit {size} channels")
        inner, given = size // head * head, size if context is None else context
        self.norm_cross = (
            nnx.LayerNorm(given, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
            if normalized
            else None
        )
        self.to_q = nnx.Linear(size, inner, rngs=rngs)
        self.to_k = nnx.Linear(given, inner, rngs=rngs)
        self.to_v = nnx.Linear(given, inner, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(inner, size, rngs=rngs)])
        self.head = head

    def __call__(self, h: Array, context: Context | None) -> Array:
        """Apply the layer to pixels (1, n, c)."""
        given = h if context is None else context.tokens
        if context is not None and self.norm_cross is not None:
            given = self.norm_cross(given)
        query, key, value = (
            layer(tokens).reshape(*tokens.shape[:2], -1, self.head)
            for layer, tokens in ((self.to_q, h), (self.to_k, given), (self.to_v, given))
        )
        mask = None if context is None or context.mask is None else context.mask[None, None, None]
        out = jax.nn.dot_product_attention(query, key, value, mask=mask)
        return self.to_out[0](out.reshape(*h.shape[:2], -1))


class KAttention(nnx.Module):
    """Residual attention of pixels to each other, where asked for, then to the context.

    Args:
        channels: channels of input and output.
        head: channels of a head.
        context: length of the vectors that are attended to; None where pixels attend to pixels.
        own: whether pixels attend to each other first.
        settings: of all blocks of the network.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        channels: int,
        head: int,
        context: int | None,
        own: bool,
        settings: BlockSettings,
        *,
        rngs: nnx.Rngs,
    ):
        groups, size = max(1, channels // GROUP), settings.embedding or 0
        norm = partial(AdaGroupNorm, channels, groups, ATTENTION_EPS, size, rngs=rngs)
        self.norm1 = norm() if own else None
        self.attn1 = KHeads(channels, None, False, head, rngs=rngs) if own else None
        self.norm2 = norm()
        self.attn2 = KHeads(channels, context, True, head, rngs=rngs)

    def __call__(self, h: Image, embedding: Array, context: Context | None) -> Image:
        """Apply the layers."""
        tokens = lambda norm: norm(h, embedding).reshape(1, -1, h.shape[-1])
        if self.norm1 is not None and self.attn1 is not None:
            h = h + self.attn1(tokens(self.norm1), None).reshape(h.shape)
        return h + self.attn2(tokens(self.norm2), context).reshape(h.shape)


def halve(h: Image) -> Image:
    """Halve the resolution by a filter, with the image reflected beyond its edges."""
    return fir_down(_reflect(h, 2))[:, 1:-1, 1:-1]


def double(h: Image) -> Image:
    """Double the resolution by a filter, with the image reflected beyond its edges."""
    return fir_up(_reflect(h, 1))[:, 2:-2, 2:-2]


def _reflect(h: Image, size: int) -> Image:
    if min(h.shape[1:3]) < 2:
        raise ValueError("K blocks take at least 2 pixels along each side of the lowest level")
    return jnp.pad(h, ((0, 0), (size, size), (size, size), (0, 0)), mode="reflect")
