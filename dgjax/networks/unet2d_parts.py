"""The parts of `UNet2D` and `AutoencoderKL`: residual blocks, attention and resampling.

Attributes have the names that diffusers gives them, so that its weights find their places.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.resampling import grow, shrink

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "Downsample",
    "Image",
    "Resnet",
    "Style",
    "Upsample",
    "conv",
    "fir_down",
    "fir_up",
    "nearest",
    "norm",
    "pool",
]

Image = Float[Array, "1 h w c"]  # with the batch axis that flax's layers count on

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nnx.silu,
    "swish": nnx.silu,
    "mish": lambda h: h * jnp.tanh(jax.nn.softplus(h)),
    "gelu": partial(nnx.gelu, approximate=False),
    "relu": nnx.relu,
}


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share.

    `head` is the channels of one attention head, or None for one head of them all; `embedding` the
    length of the vector that tells the noise level, or None where there is no noise.
    """

    embedding: int | None
    groups: int | None
    eps: float
    scale_shift: bool
    head: int | None
    activation: str
    padding: int


def conv(inputs: int, outputs: int, rngs: nnx.Rngs, size: int = 3) -> nnx.Conv:
    """A convolution that keeps the resolution."""
    return nnx.Conv(inputs, outputs, (size, size), rngs=rngs)


def norm(channels: int, groups: int, eps: float, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group normalisation."""
    # The fast variance, a difference of two squares, cancels where the mean is large.
    return nnx.GroupNorm(
        channels, num_groups=groups, epsilon=eps, use_fast_variance=False, rngs=rngs
    )


def pool(h: Image) -> Image:
    """The means of 2x2 pixels."""
    return nnx.avg_pool(h, (2, 2), (2, 2))


def nearest(h: Image) -> Image:
    """Every pixel as 2x2."""
    return h.repeat(2, axis=1).repeat(2, axis=2)


fir_down = partial(shrink, row=(1, 3, 3, 1))
fir_up = partial(grow, row=(1, 3, 3, 1))


class Resnet(nnx.Module):
    """Residual block of two convolutions, told of the noise level in between.

    `resample` changes the resolution before the first convolution; sums are divided by `scale`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        style: Style,
        groups: tuple[int, int],
        *,
        scale: float = 1.0,
        resample: Callable[[Image], Image] | None = None,
        shortcut: bool = False,
        rngs: nnx.Rngs,
    ):
        self.norm1 = norm(inputs, groups[0], style.eps, rngs)
        self.conv1 = conv(inputs, outputs, rngs)
        self.time_emb_proj = (
            None
            if style.embedding is None
            else nnx.Linear(style.embedding, (1 + style.scale_shift) * outputs, rngs=rngs)
        )
        self.norm2 = norm(outputs, groups[1], style.eps, rngs)
        self.conv2 = conv(outputs, outputs, rngs)
        changes = shortcut or inputs != outputs
        self.conv_shortcut = conv(inputs, outputs, rngs, 1) if changes else None
        self.style, self.scale, self.resample = style, scale, resample

    def __call__(self, h: Image, embedding: Array | None) -> Image:
        activate = ACTIVATIONS[self.style.activation]
        out = activate(self.norm1(h))
        if self.resample is not None:
            h, out = self.resample(h), self.resample(out)
        out = self.conv1(out)
        told = None
        if self.time_emb_proj is not None and embedding is not None:
            told = self.time_emb_proj(activate(embedding))
        if told is None:
            out = self.norm2(out)
        elif self.style.scale_shift:
            factor, shift = jnp.split(told, 2)
            out = self.norm2(out) * (1 + factor) + shift
        else:
            out = self.norm2(out + told)
        out = self.conv2(activate(out))
        if self.conv_shortcut is not None:
            h = self.conv_shortcut(h)
        return (h + out) / self.scale


class Attention(nnx.Module):
    """Residual self-attention over all pixels."""

    def __init__(
        self, channels: int, style: Style, groups: int | None, scale: float, *, rngs: nnx.Rngs
    ):
        self.head = channels if style.head is None else style.head
        inner = channels // self.head * self.head
        self.group_norm = None if groups is None else norm(channels, groups, style.eps, rngs)
        self.to_q = nnx.Linear(channels, inner, rngs=rngs)
        self.to_k = nnx.Linear(channels, inner, rngs=rngs)
        self.to_v = nnx.Linear(channels, inner, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(inner, channels, rngs=rngs)])
        self.scale = scale

    def __call__(self, h: Image) -> Image:
        _, height, width, channels = h.shape
        tokens = (h if self.group_norm is None else self.group_norm(h)).reshape(1, -1, channels)
        query, key, value = (
            layer(tokens).reshape(1, height * width, -1, self.head)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        out = jax.nn.dot_product_attention(query, key, value).reshape(1, height * width, -1)
        return (h + self.to_out[0](out).reshape(h.shape)) / self.scale


class Downsample(nnx.Module):
    """Half the resolution by a convolution; without padding it sees below and right only."""

    def __init__(self, channels: int, padding: int, *, rngs: nnx.Rngs):
        sides = (padding, padding) if padding else (0, 1)
        self.conv = nnx.Conv(
            channels, channels, (3, 3), strides=2, padding=(sides, sides), rngs=rngs
        )

    def __call__(self, h: Image, embedding: Array | None) -> Image:
        return self.conv(h)


class Upsample(nnx.Module):
    """Twice the resolution, then a convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, rngs)

    def __call__(self, h: Image, embedding: Array | None) -> Image:
        return self.conv(nearest(h))
