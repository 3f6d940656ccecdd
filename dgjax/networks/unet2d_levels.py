"""The levels of a U-Net on the way down and up, with skip connections between them."""

from collections.abc import Sequence

from flax import nnx

from dgjax.networks.unet2d_blocks import DownBlock, UpBlock
from dgjax.networks.unet2d_kinds import BlockKind
from dgjax.networks.unet2d_parts import BlockSettings

__all__ = ["make_down_blocks", "make_up_blocks"]


def make_down_blocks(
    kinds: Sequence[BlockKind],
    widths: Sequence[int],
    layers: Sequence[int],
    settings: BlockSettings,
    rngs: nnx.Rngs,
) -> nnx.List:
    """Make the levels on the way down.

    Args:
        kinds: variant of each level, from full resolution down.
        widths: channels of each level.
        layers: residual blocks of each level.
        settings: of all blocks of the network.
        rngs: draws the initial weights.
    """
    blocks: nnx.List = nnx.List()
    inputs = widths[0]
    for i, (kind, width, depth) in enumerate(zip(kinds, widths, layers, strict=True)):
        last = i == len(widths) - 1
        blocks.append(DownBlock(kind, inputs, width, depth, last, settings, rngs=rngs))
        inputs = width
    return blocks


def make_up_blocks(
    kinds: Sequence[BlockKind],
    widths: Sequence[int],
    layers: Sequence[int],
    settings: BlockSettings,
    rngs: nnx.Rngs,
) -> nnx.List:
    """Make the levels on the way up, which merge the skip connections of `make_down_blocks`.

    Args:
        kinds: variant of each level, from the lowest resolution up.
        widths: channels of each level, from full resolution down.
        layers: residual blocks of each level on the way down, from full resolution down; there is
            one more on the way up.
        settings: of all blocks of the network.
        rngs: draws the initial weights.
    """
    skips = [widths[0]]
    for i, (width, depth) in enumerate(zip(widths, layers, strict=True)):
        skips += (depth + (i < len(widths) - 1)) * [width]
    blocks: nnx.List = nnx.List()
    inputs = widths[-1]
    for i, (kind, width, depth) in enumerate(zip(kinds, widths[::-1], layers[::-1], strict=True)):
        merge = [skips.pop() for _ in range(depth + 1)]
        last = i == len(widths) - 1
        blocks.append(UpBlock(kind, inputs, width, merge, last, settings, rngs=rngs))
        inputs = width
    return blocks
