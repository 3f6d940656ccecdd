"""The residual block of the U-Nets of Karras et al. 2022 (EDM), and their class labels.

Attributes have the names that EDM gives its parts, so that its weights find their places.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks import unet2d_parts
from dgjax.networks.inputs import check_label
from dgjax.typing import Cond

__all__ = ["Block", "Image", "Style", "conv", "norm", "one_hot"]

Image = Float[Array, "1 h w c"]  # with the batch axis that flax's layers count on


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share.

    Attributes:
        embedding: length of the vector that tells of noise and class.
        eps: of the normalisations of blocks.
        adaptive: whether the vector scales and shifts, or only shifts.
        head: channels of one attention head, or None for one head of them all.
        scale: what sums of two images are divided by.
        projects: whether a block that resamples has a 1x1 convolution past its two.
        everywhere: whether on the way up every block attends that may, or the last of a level.
        row: the filter of `dgjax.networks.resampling`.
    """

    embedding: int
    eps: float
    adaptive: bool
    head: int | None
    scale: float
    projects: bool
    everywhere: bool
    row: tuple[float, ...]


def one_hot(cond: Cond, num_classes: int | None) -> Array | None:
    """The label as a vector, zero for no label: `cond` None or `num_classes`.

    Raises:
        ValueError: if the network takes no label, or not this one.
    """
    if num_classes is None:
        if cond is not None:
            raise ValueError(
                "this network takes no class labels: drop cond, or build it with num_classes"
            )
        return None
    if cond is None:
        return jnp.zeros(num_classes)
    check_label(cond, num_classes - 1, num_classes)
    return jax.nn.one_hot(jnp.asarray(cond), num_classes)


def conv(
    inputs: int, outputs: int, rngs: nnx.Rngs, size: int = 3, zero: bool = False, **options
) -> nnx.Conv:
    init = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
    return nnx.Conv(inputs, outputs, (size, size), kernel_init=init, rngs=rngs, **options)


def norm(channels: int, eps: float, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """At most 32 groups, of at least 4 channels."""
    groups = min(32, channels // 4)
    if not groups or channels % groups:
        raise ValueError(
            f"{channels} channels do not split into groups: take multiples of 4 below 128, and of "
            "32 above"
        )
    return unet2d_parts.norm(channels, groups, eps, rngs)


class Block(nnx.Module):
    """Residual block of two convolutions, told of noise and class in between; then attention.

    `resample` changes the resolution ahead of the first convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        style: Style,
        attention: bool = False,
        resample: Callable[[Image, Sequence[float]], Image] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.style, self.resample, self.attention = style, resample, attention
        self.norm0 = norm(inputs, style.eps, rngs)
        self.conv0 = conv(inputs, outputs, rngs)
        self.affine = nnx.Linear(style.embedding, (1 + style.adaptive) * outputs, rngs=rngs)
        self.norm1 = norm(outputs, style.eps, rngs)
        self.conv1 = conv(outputs, outputs, rngs, zero=True)
        past = inputs != outputs or (resample is not None and style.projects)
        self.skip = conv(inputs, outputs, rngs, 1) if past else None
        if attention:
            if style.head is not None and outputs % style.head:
                raise ValueError(
                    f"attention of {outputs} channels does not split into heads of {style.head}"
                )
            self.norm2 = norm(outputs, style.eps, rngs)
            self.qkv = conv(outputs, 3 * outputs, rngs, 1)
            self.proj = conv(outputs, outputs, rngs, 1, zero=True)

    def __call__(self, h: Image, embedding: Array) -> Image:
        out = nnx.silu(self.norm0(h))
        if self.resample is not None:
            h, out = self.resample(h, self.style.row), self.resample(out, self.style.row)
        out = self.conv0(out)
        told = self.affine(embedding)
        if self.style.adaptive:
            factor, shift = jnp.split(told, 2)
            out = self.norm1(out) * (1 + factor) + shift
        else:
            out = self.norm1(out + told)
        out = self.conv1(nnx.silu(out))
        h = ((h if self.skip is None else self.skip(h)) + out) / self.style.scale
        return self._attend(h) if self.attention else h

    def _attend(self, h: Image) -> Image:
        _, height, width, channels = h.shape
        head = channels if self.style.head is None else self.style.head
        # Query, key and value of a channel lie next to each other.
        qkv = self.qkv(self.norm2(h)).reshape(1, height * width, channels // head, head, 3)
        out = jax.nn.dot_product_attention(qkv[..., 0], qkv[..., 1], qkv[..., 2])
        return (h + self.proj(out.reshape(h.shape))) / self.style.scale
