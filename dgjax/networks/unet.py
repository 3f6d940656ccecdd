"""A compact U-Net for sequences, images and volumes that trains on two CPU cores.

A training step takes well under a second: convolutions are few and wide, no block works at full
resolution, and attention is at the lowest only. This file has the fold of pixels into channels
first, then the blocks, then the network. All of it is written for any number of spatial axes.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import count

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.convolution import convolve
from dgjax.networks.embedding import Embedding
from dgjax.networks.inputs import check_shape
from dgjax.typing import Cond, Key, Sample, Scalar

__all__ = ["Block", "UNet", "fold", "unfold"]

MOST_FREQUENCY = 1e6  # radians per unit; float32 does not resolve higher ones
# With the batch axis that flax's layers need: (1, L, C), (1, H, W, C) or (1, D, H, W, C).
Grid = Float[Array, "1 *spatial c"]


def fold(h: Grid) -> Grid:
    """Move each 2x2 pixels into channels: (1, H, W, C) to (1, H/2, W/2, 4C).

    With n spatial axes, 2^n pixels become one.
    """
    sides, channels = h.shape[1:-1], h.shape[-1]
    halves = tuple(side // 2 for side in sides)
    h = h.reshape(1, *(size for half in halves for size in (half, 2)), channels)
    return _sides_first(h).reshape(1, *halves, 2 ** len(sides) * channels)


def unfold(h: Grid) -> Grid:
    """Invert `fold`: (1, H, W, 4C) to (1, 2H, 2W, C)."""
    sides = h.shape[1:-1]
    rank, channels = len(sides), h.shape[-1] // 2 ** len(sides)
    h = h.reshape(1, *sides, *(2,) * rank, channels)
    order = [axis for i in range(1, rank + 1) for axis in (i, i + rank)]
    h = h.transpose(0, *order, 2 * rank + 1)
    return h.reshape(1, *(2 * side for side in sides), channels)


def _sides_first(h: Array) -> Array:
    """Move axes (1, H, 2, W, 2, C) to (1, H, W, 2, 2, C), for any number of sides."""
    last = h.ndim - 1
    return h.transpose(0, *range(1, last, 2), *range(2, last, 2), last)


def _conv(
    rank: int, inputs: int, outputs: int, size: int, rngs: nnx.Rngs, zero: bool = False
) -> nnx.Conv:
    """Make a convolution over `rank` spatial axes."""
    init = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
    sizes = (size,) * rank
    return nnx.Conv(
        inputs, outputs, sizes, kernel_init=init, conv_general_dilated=convolve, rngs=rngs
    )


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=channels // 8, rngs=rngs)


class Block(nnx.Module):
    """Residual block of two 3x3 convolutions, with scale and shift from the embedding in between.

    Args:
        channels: channels of input and output.
        embedding: length of the vector that carries the noise level and the label.
        dropout: probability of dropping a unit where a key is given.
        rank: number of spatial axes.
        rngs: draws the initial weights.
    """

    def __init__(
        self, channels: int, embedding: int, dropout: float, rank: int = 2, *, rngs: nnx.Rngs
    ):
        self.norm_in = _norm(channels, rngs)
        self.conv_in = _conv(rank, channels, channels, 3, rngs)
        self.film = nnx.Linear(embedding, 2 * channels, rngs=rngs)
        self.norm_out = _norm(channels, rngs)
        self.dropout = nnx.Dropout(dropout)
        self.conv_out = _conv(rank, channels, channels, 3, rngs, zero=True)

    def __call__(self, h: Grid, embedding: Array, key: Key | None) -> Grid:
        """Apply the block; `key` draws the dropped units, and None drops none."""
        film = jnp.expand_dims(self.film(embedding), tuple(range(h.ndim - 1)))
        scale, shift = jnp.split(film, 2, axis=-1)
        out = self.conv_in(nnx.silu(self.norm_in(h)))
        out = nnx.silu(self.norm_out(out) * (1 + scale) + shift)
        return h + self.conv_out(self.dropout(out, deterministic=key is None, rngs=key))


class Attention(nnx.Module):
    """Residual self-attention over all pixels, in heads of 64 channels.

    Args:
        channels: channels of input and output.
        rank: number of spatial axes.
        rngs: draws the initial weights.
    """

    def __init__(self, channels: int, rank: int = 2, *, rngs: nnx.Rngs):
        self.heads = max(1, channels // 64)
        self.norm = _norm(channels, rngs)
        self.qkv = _conv(rank, channels, 3 * channels, 1, rngs)
        self.out = _conv(rank, channels, channels, 1, rngs, zero=True)

    def __call__(self, h: Grid) -> Grid:
        """Apply the layer."""
        positions = math.prod(h.shape[1:-1])
        qkv = self.qkv(self.norm(h)).reshape(1, positions, 3, self.heads, -1)
        out = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return h + self.out(out.reshape(h.shape))


class Detail(nnx.Module):
    """Input features: pixel values and sinusoids of them, with gates set by the embedding.

    At low noise the prediction depends on the last hundredths of a pixel's value. Sinusoids resolve
    them, and convolutions alone learn them slowly (Variational Diffusion Models, arXiv 2107.00630,
    section 5.1). At high noise the sinusoids are a random pattern, and the gates close.

    Args:
        inputs: channels of the sample.
        frequencies: of the sinusoids, in radians per unit of pixel value.
        embedding: length of the vector that carries the noise level and the label.
        rngs: draws the initial weights.
    """

    def __init__(
        self, inputs: int, frequencies: tuple[float, ...], embedding: int, *, rngs: nnx.Rngs
    ):
        self.frequencies = tuple(frequencies)
        self.size = inputs * (1 + 2 * len(self.frequencies))
        self.gate = nnx.Linear(embedding, self.size, rngs=rngs)

    def __call__(self, h: Grid, embedding: Array) -> Grid:
        """Return the features: `size` channels."""
        angles = [frequency * h for frequency in self.frequencies]
        values = [h, *map(jnp.sin, angles), *map(jnp.cos, angles)]
        return jnp.concatenate(values, -1) * nnx.sigmoid(self.gate(embedding))


def _keys(key: Key | None) -> Iterator[Key | None]:
    """Yield one key per block, or None for each if there is no key."""
    return (None if key is None else jax.random.fold_in(key, i) for i in count())


class UNet(nnx.Module):
    """A compact residual U-Net: `net(x, t, cond) -> out` on one sample.

    Samples are sequences (L, C), images (H, W, C) or volumes (D, H, W, C); the shape decides.

    Level k works at 1/2^(k+1) of the resolution with `channels[k]` channels. It has `blocks`
    residual blocks on the way down, and as many on the way up, each after a 1x1 convolution that
    merges the output of its partner on the way down. A new network returns zeros.

    Samples whose sides are not multiples of 2^len(channels) are padded with zeros inside the
    network, and its output is cropped. The sample itself, and so its dimension, stays unpadded.

    Args:
        shape: (L, C), (H, W, C) or (D, H, W, C) of one sample.
        channels: channels of each level, positive multiples of 8 (of 64 from 64 on).
        blocks: residual blocks on each level, each way.
        embedding: length of the vector that carries the noise level and the label.
        num_classes: number of labels, or None for a network without labels. The label
            `num_classes`, like `cond` None, stands for no label.
        frequencies: of the sinusoids of pixel values, in radians per unit of pixel value.
        dropout: probability of dropping a unit in training.
        num_augmentations: number of augmentations that training may tell the network, or None.
        rngs: draws the initial weights.

    Raises:
        ValueError: if the shape is none of these, the channels do not split into groups, the
            dropout is not in [0, 1), or another number is out of range.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: tuple[int, ...] = (64, 128),
        blocks: int = 2,
        embedding: int = 128,
        num_classes: int | None = None,
        frequencies: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0),
        dropout: float = 0.0,
        num_augmentations: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        if not 2 <= len(shape) <= 4:
            raise ValueError(
                "a U-Net takes samples of shape (L, C), (H, W, C) or (D, H, W, C), got "
                f"{tuple(shape)}"
            )
        if not channels or any(c < 8 or c % 8 or (c > 64 and c % 64) for c in channels):
            raise ValueError(
                f"channels must be multiples of 8 up to 64 and of 64 above, got {tuple(channels)}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if blocks < 0:
            raise ValueError(f"blocks must be at least 0, got {blocks}")
        if any(abs(frequency) > MOST_FREQUENCY for frequency in frequencies):
            raise ValueError(
                f"frequencies must be at most {MOST_FREQUENCY:g}, got {tuple(frequencies)}"
            )
        self.shape = tuple(shape)
        self.embed = Embedding(embedding, num_classes, num_augmentations, rngs=rngs)
        rank = len(shape) - 1
        folded = 2**rank  # pixels that `fold` makes one
        conv = partial(_conv, rank, rngs=rngs)
        self.detail = Detail(folded * shape[-1], frequencies, embedding, rngs=rngs)
        # A path around every normalization, which would hide how strong the noise in x is.
        self.shallow = conv(self.detail.size, folded * shape[-1], 3, zero=True)
        block = partial(Block, embedding=embedding, dropout=dropout, rank=rank, rngs=rngs)
        inputs = self.detail.size
        self.enter: nnx.List = nnx.List()
        self.down: nnx.List = nnx.List()
        self.merge: nnx.List = nnx.List()
        self.up: nnx.List = nnx.List()
        self.leave: nnx.List = nnx.List()
        for k, c in enumerate(channels):
            outputs = folded * (shape[-1] if k == 0 else channels[k - 1])
            self.enter.append(conv(inputs, c, 3 if k == 0 else 1))
            self.down.append(nnx.List(block(c) for _ in range(blocks)))
            self.merge.append(nnx.List(conv(2 * c, c, 1) for _ in range(blocks)))
            self.up.append(nnx.List(block(c) for _ in range(blocks)))
            self.leave.append(conv(c, outputs, 3 if k == 0 else 1, zero=k == 0))
            inputs = folded * c
        self.middle = block(channels[-1])
        self.attention = Attention(channels[-1], rank, rngs=rngs)
        self.norm = _norm(channels[0], rngs)

    def __call__(
        self,
        x: Sample,
        t: Scalar,
        cond: Cond = None,
        *,
        key: Key | None = None,
        augmentation: Cond = None,
    ) -> Sample:
        """Apply the network to one sample.

        Args:
            x: the noisy sample, of the shape of this network.
            t: the noise level as the parametrization passes it.
            cond: a class label, or None.
            key: draws the units to drop in training; None drops none.
            augmentation: number of the augmentation that was applied to the sample in training, or
                None.

        Returns:
            The network's prediction, of the same shape.

        Raises:
            ValueError: if x has another shape or the label is not one of this network.
        """
        check_shape(x, self.shape)
        embedding = self.embed(t, cond, augmentation)
        keys = _keys(key)
        sides, step = self.shape[:-1], 2 ** len(self.down)
        padding = ((0, 0), *((0, -side % step) for side in sides), (0, 0))
        h = jnp.pad(x[None], padding)

        skips = []
        detail = self.detail(fold(h), embedding)
        for k, (enter, blocks) in enumerate(zip(self.enter, self.down, strict=True)):
            h = enter(detail if k == 0 else fold(h))
            for block in blocks:
                h = block(h, embedding, next(keys))
                skips.append(h)
        h = self.attention(self.middle(h, embedding, next(keys)))
        for k in reversed(range(len(self.up))):
            for merge, block in zip(self.merge[k], self.up[k], strict=True):
                h = merge(jnp.concatenate([h, skips.pop()], -1))
                h = block(h, embedding, next(keys))
            if k == 0:
                h = nnx.silu(self.norm(h))
            h = self.leave[k](h)
            h = unfold(h + self.shallow(detail) if k == 0 else h)
        return h[0][tuple(slice(side) for side in sides)].astype(x.dtype)
