"""What the two U-Nets of Karras et al. 2022 (EDM) have in common: all but their embeddings.

Attributes have the names that EDM gives its parts, with the number of a level where EDM has its
resolution, so that its weights find their places.
"""

from math import sqrt
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dgjax.networks.edm_blocks import Block, Image, Style, conv, norm
from dgjax.networks.resampling import grow, shrink

__all__ = ["Trunk"]

SIDES = ("standard", "skip", "residual")


class EncoderLevel(nnx.Module):
    """Half the resolution, but on the first level; then residual blocks.

    `thin` are the channels of a second image, which `side` says how to merge: "skip" passes the
    input on at every resolution, "residual" carries the sum of all levels.
    """

    def __init__(
        self,
        first: bool,
        inputs: int,
        widths: list[int],
        attention: bool,
        style: Style,
        side: str,
        thin: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.style = style
        middle, *rest = widths
        self.conv = conv(inputs, middle, rngs) if first else None
        self.down = None if first else Block(inputs, middle, style, resample=shrink, rngs=rngs)
        skips, sums = side == "skip" and not first, side == "residual" and not first
        self.aux_skip = conv(thin, middle, rngs, 1) if skips else None
        # Filtered after the convolution, which therefore sees beyond the edges.
        sides = 2 * [(len(style.row) // 2, len(style.row) // 2)]
        self.aux_residual = conv(thin, middle, rngs, padding=sides) if sums else None
        self.blocks: nnx.List = nnx.List()
        for outputs in rest:
            self.blocks.append(Block(middle, outputs, style, attention, rngs=rngs))
            middle = outputs

    def __call__(self, h: Image, thin: Image, embedding: Array) -> tuple[Image, list[Image]]:
        """The second image, and what is kept for the way up, of which the last goes on."""
        row, scale = self.style.row, sqrt(2)
        if self.conv is not None:
            h = self.conv(h)
        if self.down is not None:
            h = self.down(h, embedding)
        if self.aux_skip is not None:
            thin = shrink(thin, row)
            h = h + self.aux_skip(thin)
        if self.aux_residual is not None:
            h = thin = (h + shrink(self.aux_residual(thin), row, 0)) / scale
        kept = [h]
        for block in self.blocks:
            kept.append(block(kept[-1], embedding))
        return thin, kept


class DecoderLevel(nnx.Module):
    """Twice the resolution, or two blocks on the last level; then a block for each kept image.

    If it `draws`, it adds to an image of `thin` channels, which grows with the levels.
    """

    def __init__(
        self,
        last: bool,
        inputs: int,
        outputs: int,
        kept: list[int],
        attention: bool,
        style: Style,
        draws: bool,
        thin: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.style = style
        self.up = None if last else Block(inputs, inputs, style, resample=grow, rngs=rngs)
        self.in0 = Block(inputs, inputs, style, True, rngs=rngs) if last else None
        self.in1 = Block(inputs, inputs, style, rngs=rngs) if last else None
        self.blocks: nnx.List = nnx.List()
        for i, more in enumerate(kept):
            attends = attention and (style.everywhere or i == len(kept) - 1)
            self.blocks.append(Block(inputs + more, outputs, style, attends, rngs=rngs))
            inputs = outputs
        self.aux_norm = norm(outputs, style.eps, rngs) if draws else None
        self.aux_conv = conv(outputs, thin, rngs, zero=True) if draws else None

    def __call__(
        self, h: Image, drawn: Image | None, kept: list[Image], embedding: Array
    ) -> tuple[Image, Image | None]:
        """The image and what is drawn of the result; takes from the end of `kept`."""
        for block in (self.in0, self.in1, self.up):
            if block is not None:
                h = block(h, embedding)
        for block in self.blocks:
            h = block(jnp.concatenate([h, kept.pop()], -1), embedding)
        if self.aux_norm is not None and self.aux_conv is not None:
            more = self.aux_conv(nnx.silu(self.aux_norm(h)))
            drawn = more if drawn is None else grow(drawn, self.style.row) + more
        return h, drawn


class Trunk(nnx.Module):
    """The U-Net proper: an image and a vector of `style.embedding` to an image.

    Args:
        shape: (H, W, C) of one image.
        first: channels of the first convolution.
        widths: channels of each level.
        num_blocks: residual blocks of a level on the way down; one more on the way up.
        attn_resolutions: heights of an image at which blocks attend to all of it.
        style: of all blocks.
        encoder, decoder: "standard"; or how a second image is carried along: "skip" either way,
            "residual" on the way down.

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
        style: Style,
        encoder: str = "standard",
        decoder: str = "standard",
        *,
        rngs: nnx.Rngs,
    ):
        step = 2 ** (len(widths) - 1)
        if not widths or num_blocks < 1:
            raise ValueError(f"a U-Net needs levels and blocks, got {widths} and {num_blocks}")
        if len(shape) != 3 or shape[0] % step or shape[1] % step:
            raise ValueError(
                f"this U-Net takes images (H, W, C) with H and W multiples of {step}, got {shape}"
            )
        if len(style.row) < 2 or len(style.row) % 2:
            raise ValueError(f"resample_filter must be of even length, got {style.row}")
        for name, side, known_sides in (
            ("encoder_type", encoder, SIDES),
            ("decoder_type", decoder, SIDES[:2]),
        ):
            if side not in known_sides:
                raise ValueError(f"{name} {side!r} is unknown: there is {', '.join(known_sides)}")
        channels = shape[2]
        attends = [shape[0] >> level in attn_resolutions for level in range(len(widths))]
        self.enc: nnx.List = nnx.List()
        inputs, kept, thin = channels, [], channels
        for i, (width, attention) in enumerate(zip(widths, attends, strict=True)):
            made = [first if i == 0 else inputs, *(num_blocks * [width])]
            self.enc.append(
                EncoderLevel(i == 0, inputs, made, attention, style, encoder, thin, rngs=rngs)
            )
            kept += made
            if encoder == "residual" and i > 0:
                thin = made[0]
            inputs = width
        self.dec: nnx.List = nnx.List()
        for i, (width, attention) in reversed(list(enumerate(zip(widths, attends, strict=True)))):
            merged = [kept.pop() for _ in range(num_blocks + 1)]
            draws = i == 0 or decoder == "skip"
            last = i == len(widths) - 1
            self.dec.insert(
                0,
                DecoderLevel(
                    last, inputs, width, merged, attention, style, draws, channels, rngs=rngs
                ),
            )
            inputs = width

    def __call__(self, x: Image, embedding: Array) -> Image:
        h, thin, kept = x, x, []
        for level in self.enc:
            thin, more = level(h, thin, embedding)
            h = more[-1]
            kept += more
        drawn: Any = None
        for level in reversed(self.dec):
            h, drawn = level(h, drawn, kept, embedding)
        return drawn
