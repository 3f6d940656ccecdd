"""Levels that diffusers calls K blocks, of `UNet2D` and `UNet2DCondition`.

They are those of the U-Nets of k-diffusion: the embedding of the time scales and shifts every
normalization, the resolution changes by a filter without weights, and one skip connection leads
from each level of the way down to its counterpart on the way up. The attributes that hold weights
have the names of diffusers' modules, because checkpoints are read by these names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dgjax.networks.unet2d_k_parts import KAttention, KResnet, double, halve
from dgjax.networks.unet2d_parts import BlockSettings, Image
from dgjax.networks.unet2d_transformer import Context

__all__ = ["K_DOWN", "K_UP", "KLevel", "are_k_blocks", "make_k_blocks"]

# diffusers' names, and whether there is attention.
K_DOWN = {"KDownBlock2D": False, "KCrossAttnDownBlock2D": True}
K_UP = {"KUpBlock2D": False, "KCrossAttnUpBlock2D": True}


@dataclass(frozen=True)
class KLevel:
    """Settings of one level.

    Attributes:
        name: diffusers' name of the block: a key of `K_DOWN` or `K_UP`.
        width: channels.
        layers: number of residual blocks, the same on the way down and up.
        head: channels of an attention head.
        context: length of the vectors that are attended to; None where pixels attend to pixels.
    """

    name: str
    width: int
    layers: int
    head: int
    context: int | None = None


def are_k_blocks(down: Sequence[str], up: Sequence[str]) -> bool:
    """Return whether the levels of a U-Net are K blocks.

    Args:
        down: diffusers' names of the blocks on the way down.
        up: the same on the way up.

    Raises:
        ValueError: if some are and others are not; their skip connections do not fit.
    """
    found = [name in K_DOWN for name in down] + [name in K_UP for name in up]
    if any(found) and not all(found):
        other = [*down, *up][found.index(False)]
        raise ValueError(
            f"K blocks go with K blocks only, and {other!r} is none: expected one of "
            f"{', '.join(K_DOWN)} on the way down, and one of {', '.join(K_UP)} on the way up"
        )
    return all(found)


def make_k_blocks(
    down: Sequence[KLevel], up: Sequence[KLevel], settings: BlockSettings, rngs: nnx.Rngs
) -> tuple[nnx.List, nnx.List]:
    """Make the levels of a U-Net.

    Args:
        down: the levels on the way down, from full resolution.
        up: the levels on the way up, from the lowest resolution.
        settings: of all blocks of the network.
        rngs: draws the initial weights.

    Returns:
        The blocks on the way down, and those on the way up.

    Raises:
        ValueError: if channels do not fit the groups or heads, or the lowest levels do not fit
            each other.
    """
    for level in (*down, *up):
        if level.layers < 1:
            raise ValueError(f"{level.name} takes at least one residual block")
    widths = [level.width for level in up]
    nexts = [*widths[1:], widths[-1]]
    lowest, first = K_DOWN[down[-1].name], up[0]
    # As in diffusers: the lowest levels are one, without a skip connection, if both attend.
    joined = K_UP[first.name] and first.width == nexts[0] == settings.embedding
    if lowest != joined:
        raise ValueError(
            f"{down[-1].name} cannot be followed by {first.name} of {first.width} channels with "
            f"{nexts[0]} next and an embedding of {settings.embedding}: the lowest levels both "
            "attend, and these three numbers are equal; or neither is so"
        )
    downs: nnx.List = nnx.List()
    inputs = down[0].width
    for i, level in enumerate(down):
        last = i == len(down) - 1
        downs.append(KDownBlock(level, inputs, last, settings, rngs=rngs))
        inputs = level.width
    ups: nnx.List = nnx.List()
    for i, (level, outputs) in enumerate(zip(up, nexts, strict=True)):
        last, own = i == len(up) - 1, K_UP[level.name] and level.width == outputs
        own = own and level.width == settings.embedding
        if own and i:
            raise ValueError(
                f"{level.name} of {level.width} channels, as many as the embedding has, has no "
                "place above the lowest level"
            )
        ups.append(KUpBlock(level, outputs, own, last, settings, rngs=rngs))
    return downs, ups


class KDownBlock(nnx.Module):
    """One level on the way down: residual blocks, then half the resolution.

    Args:
        level: settings of the level.
        inputs: channels of the input.
        last: whether this is the lowest level, which keeps its resolution; with attention its
            pixels attend to each other, too, and it has no skip connection.
        settings: of all blocks of the network.
        rngs: draws the initial weights.
    """

    def __init__(
        self, level: KLevel, inputs: int, last: bool, settings: BlockSettings, *, rngs: nnx.Rngs
    ):
        width, attends = level.width, K_DOWN[level.name]
        sizes = [inputs, *(level.layers - 1) * [width]]
        self.resnets = nnx.List(KResnet(n, width, width, settings, rngs=rngs) for n in sizes)
        heads = (level.head, level.context, last, settings)
        self.attentions = nnx.List(KAttention(width, *heads, rngs=rngs) for _ in sizes if attends)
        self.halves, self.skips = not last, not (attends and last)

    def __call__(
        self, h: Image, auxiliary: Image, embedding: Array, context: Context | None = None
    ) -> tuple[Image, Image, list[Image | None]]:
        """Apply the level.

        Args:
            h: the features.
            auxiliary: not used; other blocks are called with it.
            embedding: vector of time and class.
            context: what the pixels attend to; None for each other.

        Returns:
            The features, `auxiliary`, and the skip connection to the way up.
        """
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, embedding)
            if self.attentions:
                h = self.attentions[i](h, embedding, context)
        skip = h if self.skips else None
        return halve(h) if self.halves else h, auxiliary, [skip]


class KUpBlock(nnx.Module):
    """One level on the way up: residual blocks, then twice the resolution.

    Args:
        level: settings of the level.
        outputs: channels of the output.
        own: whether pixels attend to each other, too, and there is no skip connection.
        last: whether this is the highest level, which keeps its resolution.
        settings: of all blocks of the network.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        level: KLevel,
        outputs: int,
        own: bool,
        last: bool,
        settings: BlockSettings,
        *,
        rngs: nnx.Rngs,
    ):
        width, attends = level.width, K_UP[level.name]
        self.resnets: nnx.List = nnx.List()
        self.attentions: nnx.List = nnx.List()
        heads = (level.head, level.context, own, settings)
        for i in range(level.layers):
            inputs = width if i or own else 2 * width
            end = outputs if i == level.layers - 1 else width
            # Without attention the first convolution changes the channels, with it the second.
            inner = width if attends else end
            self.resnets.append(KResnet(inputs, inner, end, settings, width, rngs=rngs))
            if attends:
                self.attentions.append(KAttention(end, *heads, rngs=rngs))
        self.doubles = not last

    def __call__(
        self,
        h: Image,
        auxiliary: Image | None,
        skips: list[Image | None],
        embedding: Array,
        context: Context | None = None,
    ) -> tuple[Image, Image | None]:
        """Apply the level.

        Args:
            h: the features.
            auxiliary: not used; other blocks are called with it.
            skips: skip connections; that of this level is taken off the end of the list.
            embedding: vector of time and class.
            context: what the pixels attend to; None for each other.

        Returns:
            The features and `auxiliary`.
        """
        skip = skips.pop()
        if skip is not None:
            h = jnp.concatenate([h, skip], -1)
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, embedding)
            if self.attentions:
                h = self.attentions[i](h, embedding, context)
        return double(h) if self.doubles else h, auxiliary
