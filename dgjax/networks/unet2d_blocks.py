"""The levels of `UNet2D`, down, in the middle and up, with the attribute names of diffusers."""

from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dgjax.networks.unet2d_parts import (
    Attention,
    Downsample,
    Image,
    Resnet,
    Style,
    Upsample,
    conv,
    fir_down,
    fir_up,
    nearest,
    norm,
    pool,
)

__all__ = ["DOWN", "UP", "DownBlock", "Kind", "MidBlock", "UpBlock", "few"]


@dataclass(frozen=True)
class Kind:
    """What a level is made of.

    `resample` is how it changes the resolution: "conv", "resnet", or None for what the network
    says. `thin` levels do it by a smoothing filter, carry a small copy of the image along and
    divide sums by sqrt(2), to keep the variance (Song et al. 2021, NCSN++).
    """

    attention: bool = False
    resample: str | None = "conv"
    thin: bool = False

    @property
    def scale(self) -> float:
        """What sums are divided by."""
        return sqrt(2) if self.thin else 1.0

    def groups(self, inputs: int, outputs: int, style: Style) -> tuple[int, int]:
        """Groups of the two normalisations of a residual block."""
        if self.thin or style.groups is None:
            return few(inputs), few(outputs)
        return style.groups, style.groups

    def attend(self, channels: int, style: Style, rngs: nnx.Rngs) -> Attention:
        """Attention in the groups of this kind."""
        groups = 32 if self.thin else style.groups
        return Attention(channels, style, groups, self.scale, rngs=rngs)


DOWN: dict[str, Kind] = {
    "DownBlock2D": Kind(),
    "AttnDownBlock2D": Kind(attention=True, resample=None),
    "ResnetDownsampleBlock2D": Kind(resample="resnet"),
    "SkipDownBlock2D": Kind(thin=True),
    "AttnSkipDownBlock2D": Kind(attention=True, thin=True),
}
UP: dict[str, Kind] = {
    "UpBlock2D": Kind(),
    "AttnUpBlock2D": Kind(attention=True, resample=None),
    "ResnetUpsampleBlock2D": Kind(resample="resnet"),
    "SkipUpBlock2D": Kind(thin=True),
    "AttnSkipUpBlock2D": Kind(attention=True, thin=True),
}


def few(channels: int) -> int:
    """Groups of channels where no number is set."""
    return min(channels // 4, 32)


class DownBlock(nnx.Module):
    """Residual blocks, then half the resolution unless it is the last level."""

    def __init__(
        self,
        kind: Kind,
        inputs: int,
        outputs: int,
        layers: int,
        last: bool,
        style: Style,
        *,
        rngs: nnx.Rngs,
    ):
        sizes = [inputs] + (layers - 1) * [outputs]
        self.resnets = nnx.List(
            Resnet(n, outputs, style, kind.groups(n, outputs, style), scale=kind.scale, rngs=rngs)
            for n in sizes
        )
        self.attentions = nnx.List(
            kind.attend(outputs, style, rngs) for _ in sizes if kind.attention
        )
        resnet = partial(Resnet, outputs, outputs, style, kind.groups(outputs, outputs, style))
        fir = partial(resnet, scale=kind.scale, resample=fir_down, shortcut=True)
        thin = kind.thin and not last
        self.resnet_down = fir(rngs=rngs) if thin else None
        self.skip_conv: Any = conv(3, outputs, rngs, 1) if thin else None
        self.downsamplers: nnx.List = nnx.List()
        if not (last or kind.thin):
            learnt = kind.resample == "conv"
            self.downsamplers.append(
                Downsample(outputs, style.padding, rngs=rngs)
                if learnt
                else resnet(resample=pool, rngs=rngs)
            )

    def __call__(
        self, h: Image, thin: Image, embedding: Array | None
    ) -> tuple[Image, Image, list[Image]]:
        """The image, its thin copy, and all images that are kept for the way up."""
        kept = []
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, embedding)
            if self.attentions:
                h = self.attentions[i](h)
            kept.append(h)
        if self.resnet_down is not None:
            thin = fir_down(thin)
            h = self.skip_conv(thin) + self.resnet_down(h, embedding)
            kept.append(h)
        for downsample in self.downsamplers:
            h = downsample(h, embedding)
            kept.append(h)
        return h, thin, kept


class MidBlock(nnx.Module):
    """Two residual blocks, with attention in between if `attention`."""

    def __init__(
        self,
        channels: int,
        style: Style,
        attention: bool,
        attention_groups: int | None,
        scale: float,
        *,
        rngs: nnx.Rngs,
    ):
        groups = few(channels) if style.groups is None else style.groups
        if attention_groups is None and not style.scale_shift:
            attention_groups = groups
        self.resnets = nnx.List(
            Resnet(channels, channels, style, (groups, groups), scale=scale, rngs=rngs)
            for _ in range(2)
        )
        self.attentions = nnx.List(
            [Attention(channels, style, attention_groups, scale, rngs=rngs)] if attention else []
        )

    def __call__(self, h: Image, embedding: Array | None) -> Image:
        h = self.resnets[0](h, embedding)
        for attention in self.attentions:
            h = attention(h)
        return self.resnets[1](h, embedding)


class UpBlock(nnx.Module):
    """A residual block for each kept image, then twice the resolution unless it is the last level.

    `kept` are the channels of the kept images, in the order in which they are merged.
    """

    def __init__(
        self,
        kind: Kind,
        inputs: int,
        outputs: int,
        kept: list[int],
        last: bool,
        style: Style,
        *,
        rngs: nnx.Rngs,
    ):
        self.thin = kind.thin
        sizes = [n + k for n, k in zip([inputs] + (len(kept) - 1) * [outputs], kept, strict=True)]
        self.resnets = nnx.List(
            Resnet(n, outputs, style, g, scale=kind.scale, rngs=rngs)
            for n, g in zip(sizes, _merging(kind, sizes, kept, outputs, style), strict=True)
        )
        attentions = kind.attention * (1 if kind.thin else len(kept))
        self.attentions = nnx.List(kind.attend(outputs, style, rngs) for _ in range(attentions))
        same = kind.groups(outputs, outputs, style)
        resnet = partial(Resnet, outputs, outputs, style, same)
        fir = partial(resnet, scale=kind.scale, resample=fir_up, shortcut=True)
        draws = kind.thin and not last
        self.resnet_up = fir(rngs=rngs) if draws else None
        self.skip_norm: Any = norm(outputs, same[1], style.eps, rngs) if draws else None
        self.skip_conv: Any = conv(outputs, 3, rngs) if draws else None
        self.upsamplers: nnx.List = nnx.List()
        if not (last or kind.thin):
            learnt = kind.resample == "conv"
            self.upsamplers.append(
                Upsample(outputs, rngs=rngs) if learnt else resnet(resample=nearest, rngs=rngs)
            )

    def __call__(
        self, h: Image, thin: Image | None, kept: list[Image], embedding: Array
    ) -> tuple[Image, Image | None]:
        """The image and its thin copy; takes from the end of `kept` what it merges."""
        for i, resnet in enumerate(self.resnets):
            h = resnet(jnp.concatenate([h, kept.pop()], -1), embedding)
            if self.attentions and not self.thin:
                h = self.attentions[i](h)
        if self.thin and self.attentions:
            h = self.attentions[0](h)
        if self.thin and thin is not None:
            thin = fir_up(thin)
        if self.resnet_up is not None:
            drawn = self.skip_conv(nnx.silu(self.skip_norm(h)))
            thin = drawn if thin is None else thin + drawn
            h = self.resnet_up(h, embedding)
        for upsample in self.upsamplers:
            h = upsample(h, embedding)
        return h, thin


def _merging(
    kind: Kind, sizes: list[int], kept: list[int], outputs: int, style: Style
) -> list[tuple[int, int]]:
    """Groups of the residual blocks of an `UpBlock`."""
    groups = [kind.groups(n, outputs, style) for n in sizes]
    if not (kind.thin and kind.attention):
        return groups
    # The first norm's do not follow `few`: diffusers quarters the kept channels only.
    firsts = [min(n - k + k // 4, 32) for n, k in zip(sizes, kept, strict=True)]
    return [(first, second) for first, (_, second) in zip(firsts, groups, strict=True)]
