"""Parts of the two U-Nets of EDM (arXiv 2206.00364): residual blocks, class labels, settings.

The attributes that hold weights have the names of EDM's modules, because checkpoints are read by
these names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks import unet2d_parts
from dgjax.networks.attention import attend
from dgjax.networks.convolution import convolve
from dgjax.networks.inputs import check_label
from dgjax.typing import Cond

__all__ = [
    "Block",
    "EDMSettings",
    "Image",
    "check_levels",
    "conv",
    "group_norm",
    "one_hot",
    "optional_linear",
]

Image = Float[Array, "1 h w c"]  # with the batch axis that flax's layers need


@dataclass(frozen=True)
class EDMSettings:
    """Settings that all blocks of a network share.

    Attributes:
        embedding: length of the vector that carries noise level and class.
        eps: added to the variance in normalizations.
        scale_shift: whether the embedding scales and shifts, or only shifts.
        head_channels: channels of an attention head, or None for one head.
        scale: residual sums are divided by this.
        shortcut: whether the input of a block that resamples passes a 1x1 convolution even where
            the channels are equal.
        attend_all: whether on the way up all blocks of a level with attention have it, or the last
            only.
        kernel: smoothing filter of `dgjax.networks.resampling`.
    """

    embedding: int
    eps: float
    scale_shift: bool
    head_channels: int | None
    scale: float
    shortcut: bool
    attend_all: bool
    kernel: tuple[float, ...]


def check_levels(
    shape: tuple[int, ...], widths: tuple[int, ...], num_blocks: int, kernel: tuple[float, ...]
) -> None:
    """Check the arguments that the U-Nets of EDM and EDM2 share.

    Args:
        shape: (H, W, C) of an image.
        widths: one number for each level, channels or multiples of them.
        num_blocks: residual blocks of a level.
        kernel: smoothing filter along one side.

    Raises:
        ValueError: if there are no levels or blocks, H or W do not halve at each level, or the
            filter is not of even length.
    """
    step = 2 ** (len(widths) - 1)
    if not widths or num_blocks < 1:
        raise ValueError(f"a U-Net needs levels and blocks, got {widths} and {num_blocks}")
    if len(shape) != 3 or shape[0] % step or shape[1] % step:
        raise ValueError(
            f"this U-Net takes images (H, W, C) with H and W multiples of {step}, got {shape}"
        )
    if len(kernel) < 2 or len(kernel) % 2:
        raise ValueError(f"resample_filter must be of even length, got {kernel}")


def one_hot(cond: Cond, num_classes: int | None) -> Array | None:
    """Return a class label as a vector.

    Args:
        cond: the label; None or `num_classes` stand for no label.
        num_classes: number of labels, or None for a network without labels.

    Returns:
        A vector of length `num_classes`, zeros for no label, or None for a network without labels.

    Raises:
        ValueError: if the network takes no labels, or the label is out of range.
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


def optional_linear(
    inputs: int | None, outputs: int, rngs: nnx.Rngs, *, use_bias: bool = False
) -> nnx.Linear | None:
    """Make a linear layer for an optional input; None if its length `inputs` is None."""
    return None if inputs is None else nnx.Linear(inputs, outputs, use_bias=use_bias, rngs=rngs)


def conv(
    inputs: int, outputs: int, rngs: nnx.Rngs, size: int = 3, zero: bool = False, **options
) -> nnx.Conv:
    """Make a convolution of stride 1; with `zero` its initial kernel is zero."""
    init = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
    options |= {"kernel_init": init, "conv_general_dilated": convolve}
    return nnx.Conv(inputs, outputs, (size, size), rngs=rngs, **options)


def group_norm(channels: int, eps: float, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Make a group normalization with groups of at least 4 channels, at most 32 groups.

    Raises:
        ValueError: if the channels do not split into such groups.
    """
    groups = min(32, channels // 4)
    if not groups or channels % groups:
        raise ValueError(
            f"{channels} channels do not split into groups: take multiples of 4 below 128, and of "
            "32 above"
        )
    return unet2d_parts.group_norm(channels, groups, eps, rngs)


class Block(nnx.Module):
    """Residual block of two 3x3 convolutions with the embedding in between, then attention.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        settings: of all blocks of the network.
        attention: whether there is self-attention over all pixels.
        resample: changes the resolution before the first convolution, given the image and the
            filter; None keeps it.
        rngs: draws the initial weights.

    Raises:
        ValueError: if the channels do not split into groups or attention heads.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        settings: EDMSettings,
        attention: bool = False,
        resample: Callable[[Image, Sequence[float]], Image] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.settings, self.resample, self.attention = settings, resample, attention
        self.norm0 = group_norm(inputs, settings.eps, rngs)
        self.conv0 = conv(inputs, outputs, rngs)
        self.affine = nnx.Linear(
            settings.embedding, (1 + settings.scale_shift) * outputs, rngs=rngs
        )
        self.norm1 = group_norm(outputs, settings.eps, rngs)
        self.conv1 = conv(outputs, outputs, rngs, zero=True)
        shortcut = inputs != outputs or (resample is not None and settings.shortcut)
        self.skip = conv(inputs, outputs, rngs, 1) if shortcut else None
        if attention:
            if settings.head_channels is not None and outputs % settings.head_channels:
                raise ValueError(
                    f"attention of {outputs} channels does not split into heads of "
                    f"{settings.head_channels}"
                )
            self.norm2 = group_norm(outputs, settings.eps, rngs)
            self.qkv = conv(outputs, 3 * outputs, rngs, 1)
            self.proj = conv(outputs, outputs, rngs, 1, zero=True)

    def __call__(self, h: Image, embedding: Array) -> Image:
        """Apply the block."""
        out = nnx.silu(self.norm0(h))
        if self.resample is not None:
            kernel = self.settings.kernel
            h, out = self.resample(h, kernel), self.resample(out, kernel)
        out = self.conv0(out)
        modulation = self.affine(embedding)
        if self.settings.scale_shift:
            factor, shift = jnp.split(modulation, 2)
            out = self.norm1(out) * (1 + factor) + shift
        else:
            out = self.norm1(out + modulation)
        out = self.conv1(nnx.silu(out))
        h = ((h if self.skip is None else self.skip(h)) + out) / self.settings.scale
        return self._attend(h) if self.attention else h

    def _attend(self, h: Image) -> Image:
        _, height, width, channels = h.shape
        head = channels if self.settings.head_channels is None else self.settings.head_channels
        # EDM's order of channels: query, key and value of one channel are neighbours.
        qkv = self.qkv(self.norm2(h)).reshape(1, height * width, channels // head, head, 3)
        out = attend(qkv[..., 0], qkv[..., 1], qkv[..., 2])
        return (h + self.proj(out.reshape(h.shape))) / self.settings.scale
