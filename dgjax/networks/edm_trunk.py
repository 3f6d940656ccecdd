"""The U-Net that both networks of EDM (arXiv 2206.00364) share: all but their embeddings.

The attributes that hold weights have the names of EDM's modules, with the number of a level where
EDM has its resolution.
"""

from math import sqrt

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dgjax.networks.edm_blocks import Block, EDMSettings, Image, check_levels, conv, group_norm
from dgjax.networks.inputs import check_shape
from dgjax.networks.resampling import filter_down, filter_up
from dgjax.typing import Sample

__all__ = ["Trunk"]

ENCODERS = ("standard", "skip", "residual")
DECODERS = ("standard", "skip")


class EncoderLevel(nnx.Module):
    """One level on the way down: half the resolution (but on the first), then residual blocks.

    Args:
        first: whether this is the level of full resolution.
        inputs: channels of the input.
        widths: channels after the first layer, then of each residual block.
        attention: whether the residual blocks have attention.
        settings: of all blocks of the network.
        encoder: how an auxiliary image is merged: "skip" adds the network's input, resampled to
            this level; "residual" adds the sum of all levels so far; "standard" has none.
        auxiliary: channels of the auxiliary image.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        first: bool,
        inputs: int,
        widths: list[int],
        attention: bool,
        settings: EDMSettings,
        encoder: str,
        auxiliary: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.settings = settings
        width, *rest = widths
        self.conv = conv(inputs, width, rngs) if first else None
        self.down = (
            None if first else Block(inputs, width, settings, resample=filter_down, rngs=rngs)
        )
        skip, residual = encoder == "skip" and not first, encoder == "residual" and not first
        self.aux_skip = conv(auxiliary, width, rngs, 1) if skip else None
        # The filter follows the convolution, and its padding is part of the convolution's.
        padding = 2 * [(len(settings.kernel) // 2, len(settings.kernel) // 2)]
        self.aux_residual = conv(auxiliary, width, rngs, padding=padding) if residual else None
        self.blocks: nnx.List = nnx.List()
        for outputs in rest:
            self.blocks.append(Block(width, outputs, settings, attention, rngs=rngs))
            width = outputs

    def __call__(self, h: Image, auxiliary: Image, embedding: Array) -> tuple[Image, list[Image]]:
        """Apply the level.

        Args:
            h: the features.
            auxiliary: the auxiliary image.
            embedding: vector of noise level and class.

        Returns:
            The auxiliary image, and the skip connections to the way up. The last of these is the
            input of the next level.
        """
        kernel, scale = self.settings.kernel, sqrt(2)
        if self.conv is not None:
            h = self.conv(h)
        if self.down is not None:
            h = self.down(h, embedding)
        if self.aux_skip is not None:
            auxiliary = filter_down(auxiliary, kernel)
            h = h + self.aux_skip(auxiliary)
        if self.aux_residual is not None:
            h = auxiliary = (h + filter_down(self.aux_residual(auxiliary), kernel, 0)) / scale
        skips = [h]
        for block in self.blocks:
            skips.append(block(skips[-1], embedding))
        return auxiliary, skips


class DecoderLevel(nnx.Module):
    """One level on the way up: twice the resolution, then a residual block per skip connection.

    The lowest level keeps its resolution and begins with two blocks instead.

    Args:
        lowest: whether this is the lowest level.
        inputs: channels of the input.
        outputs: channels of the output.
        skips: channels of the skip connections, in the order in which they are merged.
        attention: whether the residual blocks have attention.
        settings: of all blocks of the network.
        output: whether the level adds to the network's output.
        channels: channels of the network's output.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        lowest: bool,
        inputs: int,
        outputs: int,
        skips: list[int],
        attention: bool,
        settings: EDMSettings,
        output: bool,
        channels: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.settings = settings
        self.up = None if lowest else Block(inputs, inputs, settings, resample=filter_up, rngs=rngs)
        self.in0 = Block(inputs, inputs, settings, True, rngs=rngs) if lowest else None
        self.in1 = Block(inputs, inputs, settings, rngs=rngs) if lowest else None
        self.blocks: nnx.List = nnx.List()
        for i, skip in enumerate(skips):
            attend = attention and (settings.attend_all or i == len(skips) - 1)
            self.blocks.append(Block(inputs + skip, outputs, settings, attend, rngs=rngs))
            inputs = outputs
        self.aux_norm = group_norm(outputs, settings.eps, rngs) if output else None
        self.aux_conv = conv(outputs, channels, rngs, zero=True) if output else None

    def __call__(
        self, h: Image, output: Image | None, skips: list[Image], embedding: Array
    ) -> tuple[Image, Image | None]:
        """Apply the level.

        Args:
            h: the features.
            output: the network's output so far, or None if no level has added to it.
            skips: skip connections; those merged here are taken off the end of the list.
            embedding: vector of noise level and class.

        Returns:
            The features, and the network's output so far.
        """
        for block in (self.in0, self.in1, self.up):
            if block is not None:
                h = block(h, embedding)
        for block in self.blocks:
            h = block(jnp.concatenate([h, skips.pop()], -1), embedding)
        if self.aux_norm is not None and self.aux_conv is not None:
            more = self.aux_conv(nnx.silu(self.aux_norm(h)))
            output = more if output is None else filter_up(output, self.settings.kernel) + more
        return h, output


class Trunk(nnx.Module):
    """The U-Net itself: maps an image and an embedding of noise level and class to an image.

    Args:
        shape: (H, W, C) of one image.
        first: channels of the first convolution.
        widths: channels of each level.
        num_blocks: residual blocks of a level on the way down; one more on the way up.
        attn_resolutions: heights of an image at which blocks have attention.
        settings: of all blocks.
        encoder: "standard", "skip" or "residual"; see `EncoderLevel`.
        decoder: "standard" if the highest level makes the output, "skip" if all levels add to it.
        rngs: draws the initial weights.

    Raises:
        ValueError: if sizes do not fit each other or a name is unknown.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        first: int,
        widths: tuple[int, ...],
        num_blocks: int,
        attn_resolutions: tuple[int, ...],
        settings: EDMSettings,
        encoder: str = "standard",
        decoder: str = "standard",
        *,
        rngs: nnx.Rngs,
    ):
        check_levels(shape, widths, num_blocks, settings.kernel)
        for name, value, known in (
            ("encoder_type", encoder, ENCODERS),
            ("decoder_type", decoder, DECODERS),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown: expected one of {', '.join(known)}")
        self.shape = tuple(shape)
        channels = shape[2]
        levels = [(width, shape[0] >> i in attn_resolutions) for i, width in enumerate(widths)]
        self.enc: nnx.List = nnx.List()
        inputs, skips, auxiliary = channels, [], channels
        for i, (width, attention) in enumerate(levels):
            made = [first if i == 0 else inputs, *(num_blocks * [width])]
            self.enc.append(
                EncoderLevel(
                    i == 0, inputs, made, attention, settings, encoder, auxiliary, rngs=rngs
                )
            )
            skips += made
            if encoder == "residual" and i > 0:
                auxiliary = made[0]
            inputs = width
        self.dec: nnx.List = nnx.List()
        for i, (width, attention) in reversed(list(enumerate(levels))):
            merge = [skips.pop() for _ in range(num_blocks + 1)]
            output = i == 0 or decoder == "skip"
            lowest = i == len(widths) - 1
            level = DecoderLevel(
                lowest, inputs, width, merge, attention, settings, output, channels, rngs=rngs
            )
            self.dec.insert(0, level)
            inputs = width

    def __call__(self, x: Sample, embedding: Array) -> Sample:
        """Apply the U-Net to one image (H, W, C).

        Raises:
            ValueError: if x has another shape.
        """
        check_shape(x, self.shape)
        h = auxiliary = x[None]
        skips: list[Image] = []
        for level in self.enc:
            auxiliary, more = level(h, auxiliary, embedding)
            h = more[-1]
            skips += more
        output: Image | None = None
        for level in reversed(self.dec):
            h, output = level(h, output, skips, embedding)
        assert output is not None  # the highest level makes it
        return output[0].astype(x.dtype)
