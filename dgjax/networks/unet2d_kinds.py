"""The kinds of levels of `UNet2D` and `UNet2DCondition`, by diffusers' names."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

from flax import nnx

from dgjax.networks.unet2d_parts import Attention, BlockSettings
from dgjax.networks.unet2d_transformer import Transformer2D, TransformerSettings

__all__ = ["DOWN", "UP", "BlockKind", "default_groups"]


@dataclass(frozen=True)
class BlockKind:
    """The variant of a level.

    Attributes:
        attention: whether residual blocks are followed by attention.
        resample: layer that changes the resolution: "conv", "resnet", "pool" (means on the way
            down, repetition on the way up, without weights), or None for the network's choice. Not
            used with `auxiliary`.
        auxiliary: whether an auxiliary image of 3 channels is resampled along with the features,
            as in NCSN++ (arXiv 2011.13456). On the way down the auxiliary image is the input at
            this resolution, added to the features. On the way up each level adds to the auxiliary
            image, which becomes the output. These levels resample by a smoothing filter and divide
            residual sums by sqrt(2), to keep the variance.
        transformer: settings of the transformers that are the attention; None for plain
            self-attention.
    """

    attention: bool = False
    resample: str | None = "conv"
    auxiliary: bool = False
    transformer: TransformerSettings | None = None

    @property
    def scale(self) -> float:
        """The divisor of residual sums."""
        return sqrt(2) if self.auxiliary else 1.0

    def groups(self, inputs: int, outputs: int, settings: BlockSettings) -> tuple[int, int]:
        """Return the groups of the two normalizations of a residual block."""
        if self.auxiliary or settings.groups is None:
            return default_groups(inputs), default_groups(outputs)
        return settings.groups, settings.groups

    def make_attention(self, channels: int, settings: BlockSettings, rngs: nnx.Rngs) -> Any:
        """Make an attention layer for a level of this kind, an `Attention` or `Transformer2D`."""
        if self.transformer is not None:
            shared = self.groups(channels, channels, settings)[0]
            return Transformer2D(channels, shared, self.transformer, rngs=rngs)
        groups = 32 if self.auxiliary else settings.groups
        return Attention(channels, settings, groups, self.scale, rngs=rngs)


# By diffusers' names; it has no Pool blocks, which OpenAI's U-Net without convolutions in its
# resampling needs. Blocks with attention take their resampling from the network's settings.
DOWN: dict[str, BlockKind] = {
    "DownBlock2D": BlockKind(),
    "AttnDownBlock2D": BlockKind(attention=True, resample=None),
    "ResnetDownsampleBlock2D": BlockKind(resample="resnet"),
    "PoolDownBlock2D": BlockKind(resample="pool"),
    "SkipDownBlock2D": BlockKind(auxiliary=True),
    "AttnSkipDownBlock2D": BlockKind(attention=True, auxiliary=True),
}
UP: dict[str, BlockKind] = {
    "UpBlock2D": BlockKind(),
    "AttnUpBlock2D": BlockKind(attention=True, resample=None),
    "ResnetUpsampleBlock2D": BlockKind(resample="resnet"),
    "PoolUpBlock2D": BlockKind(resample="pool"),
    "SkipUpBlock2D": BlockKind(auxiliary=True),
    "AttnSkipUpBlock2D": BlockKind(attention=True, auxiliary=True),
}


def default_groups(channels: int) -> int:
    """Return the groups of a normalization where no number is set: 4 channels each, at most 32."""
    return min(channels // 4, 32)
