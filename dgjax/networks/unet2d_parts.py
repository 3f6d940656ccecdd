"""Parts of `UNet2D` and `AutoencoderKL`: residual blocks, attention and resampling.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.attention import attend
from dgjax.networks.convolution import convolve
from dgjax.networks.normalization import GroupNorm
from dgjax.networks.resampling import filter_down, filter_up

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "BlockSettings",
    "Downsample",
    "Image",
    "Resample",
    "Resnet",
    "Upsample",
    "conv",
    "fir_down",
    "fir_up",
    "group_norm",
    "mean_down",
    "repeat_up",
]

Image = Float[Array, "1 h w c"]  # with the batch axis that flax's layers need

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nnx.silu,
    "swish": nnx.silu,
    "mish": lambda h: h * jnp.tanh(jax.nn.softplus(h)),
    "gelu": partial(nnx.gelu, approximate=False),
    "relu": nnx.relu,
}


@dataclass(frozen=True)
class BlockSettings:
    """Settings that all blocks of a network share.

    Attributes:
        embedding: length of the vector that carries time and class, or None for a network without
            one.
        groups: groups of the normalizations, or None to choose them by the number of channels.
        eps: added to the variance in normalizations.
        scale_shift: whether the embedding scales and shifts, or only shifts.
        head_channels: channels of an attention head, or None for one head.
        activation: a name in `ACTIVATIONS`.
        padding: zeros on each side of an image before a convolution of stride 2.
        heads: number of attention heads, in place of `head_channels`; or None.
    """

    embedding: int | None
    groups: int | None
    eps: float
    scale_shift: bool
    head_channels: int | None
    activation: str
    padding: int
    heads: int | None = None


def conv(inputs: int, outputs: int, rngs: nnx.Rngs, size: int = 3) -> nnx.Conv:
    """Make a convolution that keeps the resolution."""
    return nnx.Conv(inputs, outputs, (size, size), conv_general_dilated=convolve, rngs=rngs)


def group_norm(channels: int, groups: int, eps: float, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Make a group normalization."""
    # The fast variance is a difference of two squares, which cancels where the mean is large.
    return GroupNorm(channels, num_groups=groups, epsilon=eps, use_fast_variance=False, rngs=rngs)


def mean_down(h: Image) -> Image:
    """Halve the resolution by means of 2x2 pixels."""
    return nnx.avg_pool(h, (2, 2), (2, 2))


def repeat_up(h: Image) -> Image:
    """Double the resolution by repeating each pixel."""
    return h.repeat(2, axis=1).repeat(2, axis=2)


fir_down = partial(filter_down, kernel=(1, 3, 3, 1))
fir_up = partial(filter_up, kernel=(1, 3, 3, 1))


class Resnet(nnx.Module):
    """Residual block of two 3x3 convolutions, with the embedding added in between.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        settings: of all blocks of the network.
        groups: groups of the first and of the second normalization.
        scale: the sum of input and residual is divided by this.
        resample: changes the resolution before the first convolution, or None.
        shortcut: whether the input passes a 1x1 convolution even where the channels are equal.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        settings: BlockSettings,
        groups: tuple[int, int],
        *,
        scale: float = 1.0,
        resample: Callable[[Image], Image] | None = None,
        shortcut: bool = False,
        rngs: nnx.Rngs,
    ):
        self.norm1 = group_norm(inputs, groups[0], settings.eps, rngs)
        self.conv1 = conv(inputs, outputs, rngs)
        self.time_emb_proj = (
            None
            if settings.embedding is None
            else nnx.Linear(settings.embedding, (1 + settings.scale_shift) * outputs, rngs=rngs)
        )
        self.norm2 = group_norm(outputs, groups[1], settings.eps, rngs)
        self.conv2 = conv(outputs, outputs, rngs)
        changes = shortcut or inputs != outputs
        self.conv_shortcut = conv(inputs, outputs, rngs, 1) if changes else None
        self.settings, self.scale, self.resample = settings, scale, resample

    def __call__(self, h: Image, embedding: Array | None) -> Image:
        """Apply the block; `embedding` is None in a network without one."""
        activate = ACTIVATIONS[self.settings.activation]
        out = activate(self.norm1(h))
        if self.resample is not None:
            h, out = self.resample(h), self.resample(out)
        out = self.conv1(out)
        if self.time_emb_proj is None or embedding is None:
            out = self.norm2(out)
        elif self.settings.scale_shift:
            factor, shift = jnp.split(self.time_emb_proj(activate(embedding)), 2)
            out = self.norm2(out) * (1 + factor) + shift
        else:
            out = self.norm2(out + self.time_emb_proj(activate(embedding)))
        out = self.conv2(activate(out))
        if self.conv_shortcut is not None:
            h = self.conv_shortcut(h)
        return (h + out) / self.scale


class Attention(nnx.Module):
    """Residual self-attention over all pixels.

    Args:
        channels: channels of input and output.
        settings: of all blocks of the network.
        groups: groups of the normalization, or None for no normalization.
        scale: the sum of input and residual is divided by this.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        channels: int,
        settings: BlockSettings,
        groups: int | None,
        scale: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.head = channels if settings.head_channels is None else settings.head_channels
        if settings.heads is not None:
            if settings.heads < 1 or channels % settings.heads:
                raise ValueError(
                    f"{settings.heads} attention heads do not divide {channels} channels"
                )
            self.head = channels // settings.heads
        inner = channels // self.head * self.head
        self.group_norm = (
            None if groups is None else group_norm(channels, groups, settings.eps, rngs)
        )
        self.to_q = nnx.Linear(channels, inner, rngs=rngs)
        self.to_k = nnx.Linear(channels, inner, rngs=rngs)
        self.to_v = nnx.Linear(channels, inner, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(inner, channels, rngs=rngs)])
        self.scale = scale

    def __call__(self, h: Image, context: object = None) -> Image:
        """Apply the layer; like a transformer it is called with a context, which is not used."""
        _, height, width, channels = h.shape
        tokens = (h if self.group_norm is None else self.group_norm(h)).reshape(1, -1, channels)
        query, key, value = (
            layer(tokens).reshape(1, height * width, -1, self.head)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        out = attend(query, key, value).reshape(1, height * width, -1)
        return (h + self.to_out[0](out).reshape(h.shape)) / self.scale


class Resample(nnx.Module):
    """Change the resolution without weights.

    Args:
        resample: the change.
    """

    def __init__(self, resample: Callable[[Image], Image]):
        self.resample = resample

    def __call__(self, h: Image, embedding: Array | None) -> Image:
        """Apply the layer; like a `Resnet` it is called with the embedding, which is not used."""
        return self.resample(h)


class Downsample(nnx.Module):
    """Halve the resolution by a 3x3 convolution of stride 2.

    Args:
        channels: channels of input and output.
        padding: zeros on each side. With 0 there is one row of zeros below and one column on the
            right, as in the first DDPMs.
        rngs: draws the initial weights.
    """

    def __init__(self, channels: int, padding: int, *, rngs: nnx.Rngs):
        sides = (padding, padding) if padding else (0, 1)
        self.conv = nnx.Conv(
            channels, channels, (3, 3), strides=2, padding=(sides, sides), rngs=rngs
        )

    def __call__(self, h: Image, embedding: Array | None) -> Image:
        """Apply the layer; like a `Resnet` it is called with the embedding, which is not used."""
        return self.conv(h)


class Upsample(nnx.Module):
    """Double the resolution by repeating pixels, then apply a 3x3 convolution.

    Args:
        channels: channels of input and output.
        rngs: draws the initial weights.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, rngs)

    def __call__(self, h: Image, embedding: Array | None) -> Image:
        """Apply the layer; like a `Resnet` it is called with the embedding, which is not used."""
        return self.conv(repeat_up(h))
