"""Levels of `UNet2D` and `UNet2DCondition`: the way down, the middle and the way up.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dgjax.networks.unet2d_kinds import BlockKind, default_groups
from dgjax.networks.unet2d_parts import (
    Attention,
    BlockSettings,
    Downsample,
    Image,
    Resample,
    Resnet,
    Upsample,
    conv,
    fir_down,
    fir_up,
    group_norm,
    mean_down,
    repeat_up,
)
from dgjax.networks.unet2d_transformer import Context, Transformer2D, TransformerSettings

__all__ = ["DownBlock", "MidBlock", "UpBlock"]


class DownBlock(nnx.Module):
    """One level on the way down: residual blocks, then half the resolution.

    Args:
        kind: variant of the level.
        inputs: channels of the input.
        outputs: channels of the output.
        layers: number of residual blocks.
        last: whether this is the lowest level, which keeps its resolution.
        settings: of all blocks of the network.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        kind: BlockKind,
        inputs: int,
        outputs: int,
        layers: int,
        last: bool,
        settings: BlockSettings,
        *,
        rngs: nnx.Rngs,
    ):
        sizes = [inputs] + (layers - 1) * [outputs]
        self.resnets = nnx.List(
            Resnet(
                n, outputs, settings, kind.groups(n, outputs, settings), scale=kind.scale, rngs=rngs
            )
            for n in sizes
        )
        self.attentions = nnx.List(
            kind.make_attention(outputs, settings, rngs) for _ in sizes if kind.attention
        )
        groups = kind.groups(outputs, outputs, settings)
        resnet = partial(Resnet, outputs, outputs, settings, groups)
        fir_resnet = partial(resnet, scale=kind.scale, resample=fir_down, shortcut=True)
        auxiliary = kind.auxiliary and not last
        self.resnet_down = fir_resnet(rngs=rngs) if auxiliary else None
        self.skip_conv: Any = conv(3, outputs, rngs, 1) if auxiliary else None
        self.downsamplers: nnx.List = nnx.List()
        if not (last or kind.auxiliary):
            self.downsamplers.append(
                Downsample(outputs, settings.padding, rngs=rngs)
                if kind.resample == "conv"
                else resnet(resample=mean_down, rngs=rngs)
                if kind.resample == "resnet"
                else Resample(mean_down)
            )

    def __call__(
        self,
        h: Image,
        auxiliary: Image,
        embedding: Array | None,
        context: Context | None = None,
    ) -> tuple[Image, Image, list[Image]]:
        """Apply the level.

        Args:
            h: the features.
            auxiliary: the network's input at this level's resolution, if blocks before this one
                resampled it.
            embedding: vector of time and class, or None in a network without one.
            context: what transformers attend to.

        Returns:
            The features, the auxiliary image, and the skip connections to the way up.
        """
        skips = []
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, embedding)
            if self.attentions:
                h = self.attentions[i](h, context)
            skips.append(h)
        if self.resnet_down is not None:
            auxiliary = fir_down(auxiliary)
            h = self.skip_conv(auxiliary) + self.resnet_down(h, embedding)
            skips.append(h)
        for downsample in self.downsamplers:
            h = downsample(h, embedding)
            skips.append(h)
        return h, auxiliary, skips


class MidBlock(nnx.Module):
    """The middle level: two residual blocks at the lowest resolution, optionally with attention.

    Args:
        channels: channels of input and output.
        settings: of all blocks of the network.
        attention: whether there is attention.
        attention_groups: groups of the attention's normalization, or None for those of the
            residual blocks (for no normalization with `settings.scale_shift`, as in diffusers).
        scale: residual sums are divided by this.
        transformer: settings of the transformer that is the attention; None for plain
            self-attention.
        single: whether there is one residual block only, and no attention.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        channels: int,
        settings: BlockSettings,
        attention: bool,
        attention_groups: int | None,
        scale: float,
        transformer: TransformerSettings | None = None,
        single: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        groups = default_groups(channels) if settings.groups is None else settings.groups
        if attention_groups is None and not settings.scale_shift:
            attention_groups = groups
        self.resnets = nnx.List(
            Resnet(channels, channels, settings, (groups, groups), scale=scale, rngs=rngs)
            for _ in range(1 if single else 2)
        )
        self.attentions: nnx.List = nnx.List()
        if transformer is not None:
            self.attentions.append(Transformer2D(channels, groups, transformer, rngs=rngs))
        elif attention and not single:
            own = (settings, attention_groups, scale)
            self.attentions.append(Attention(channels, *own, rngs=rngs))

    def __call__(self, h: Image, embedding: Array | None, context: Context | None = None) -> Image:
        """Apply the level.

        Args:
            h: the features.
            embedding: vector of time and class, or None in a network without one.
            context: what a transformer attends to.
        """
        first, *more = self.resnets
        h = first(h, embedding)
        for attention in self.attentions:
            h = attention(h, context)
        for resnet in more:
            h = resnet(h, embedding)
        return h


class UpBlock(nnx.Module):
    """One level on the way up: a residual block per skip connection, then twice the resolution.

    Args:
        kind: variant of the level.
        inputs: channels of the input.
        outputs: channels of the output.
        skips: channels of the skip connections, in the order in which they are merged.
        last: whether this is the highest level, which keeps its resolution.
        settings: of all blocks of the network.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        kind: BlockKind,
        inputs: int,
        outputs: int,
        skips: list[int],
        last: bool,
        settings: BlockSettings,
        *,
        rngs: nnx.Rngs,
    ):
        self.auxiliary = kind.auxiliary
        before = [inputs] + (len(skips) - 1) * [outputs]
        sizes = [n + skip for n, skip in zip(before, skips, strict=True)]
        groups = _merge_groups(kind, before, skips, outputs, settings)
        self.resnets = nnx.List(
            Resnet(n, outputs, settings, g, scale=kind.scale, rngs=rngs)
            for n, g in zip(sizes, groups, strict=True)
        )
        attentions = kind.attention * (1 if kind.auxiliary else len(skips))
        self.attentions = nnx.List(
            kind.make_attention(outputs, settings, rngs) for _ in range(attentions)
        )
        same = kind.groups(outputs, outputs, settings)
        resnet = partial(Resnet, outputs, outputs, settings, same)
        fir_resnet = partial(resnet, scale=kind.scale, resample=fir_up, shortcut=True)
        auxiliary = kind.auxiliary and not last
        self.resnet_up = fir_resnet(rngs=rngs) if auxiliary else None
        self.skip_norm: Any = (
            group_norm(outputs, same[1], settings.eps, rngs) if auxiliary else None
        )
        self.skip_conv: Any = conv(outputs, 3, rngs) if auxiliary else None
        self.upsamplers: nnx.List = nnx.List()
        if not (last or kind.auxiliary):
            self.upsamplers.append(
                Upsample(outputs, rngs=rngs)
                if kind.resample == "conv"
                else resnet(resample=repeat_up, rngs=rngs)
                if kind.resample == "resnet"
                else Resample(repeat_up)
            )

    def __call__(
        self,
        h: Image,
        auxiliary: Image | None,
        skips: list[Image],
        embedding: Array,
        context: Context | None = None,
    ) -> tuple[Image, Image | None]:
        """Apply the level.

        Args:
            h: the features.
            auxiliary: the auxiliary output so far, or None if no level has added to it.
            skips: skip connections; those merged here are taken off the end of the list.
            embedding: vector of time and class.
            context: what transformers attend to.

        Returns:
            The features and the auxiliary output.
        """
        for i, resnet in enumerate(self.resnets):
            h = resnet(jnp.concatenate([h, skips.pop()], -1), embedding)
            if self.attentions and not self.auxiliary:
                h = self.attentions[i](h, context)
        if self.auxiliary and self.attentions:
            h = self.attentions[0](h)
        if self.auxiliary and auxiliary is not None:
            auxiliary = fir_up(auxiliary)
        if self.resnet_up is not None:
            more = self.skip_conv(nnx.silu(self.skip_norm(h)))
            auxiliary = more if auxiliary is None else auxiliary + more
            h = self.resnet_up(h, embedding)
        for upsample in self.upsamplers:
            h = upsample(h, embedding)
        return h, auxiliary


def _merge_groups(
    kind: BlockKind, before: list[int], skips: list[int], outputs: int, settings: BlockSettings
) -> list[tuple[int, int]]:
    """Return the groups of the residual blocks of an `UpBlock`."""
    groups = [
        kind.groups(n + skip, outputs, settings) for n, skip in zip(before, skips, strict=True)
    ]
    if not (kind.auxiliary and kind.attention):
        return groups
    # diffusers has n + skip // 4 groups in the first normalization here, not (n + skip) // 4.
    firsts = [min(n + skip // 4, 32) for n, skip in zip(before, skips, strict=True)]
    return [(first, second) for first, (_, second) in zip(firsts, groups, strict=True)]
