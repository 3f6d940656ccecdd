"""A compact U-Net for images that trains on two CPU cores.

A training step takes well under a second: convolutions are few and wide, no block works at full
resolution, and attention is at the lowest only. This file has the fold of pixels into channels
first, then the blocks, then the network.
"""

from collections.abc import Iterator
from functools import partial
from itertools import count

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.embedding import Embedding
from dgjax.networks.inputs import check_shape
from dgjax.typing import Cond, Key, Sample, Scalar

__all__ = ["Block", "UNet", "fold", "unfold"]

Image = Float[Array, "1 h w c"]  # with the batch axis that flax's layers need


def fold(h: Image) -> Image:
    """Move each 2x2 pixels into channels: (1, H, W, C) to (1, H/2, W/2, 4C)."""
    _, height, width, channels = h.shape
    h = h.reshape(1, height // 2, 2, width // 2, 2, channels)
    return h.transpose(0, 1, 3, 2, 4, 5).reshape(1, height // 2, width // 2, 4 * channels)


def unfold(h: Image) -> Image:
    """Invert `fold`: (1, H, W, 4C) to (1, 2H, 2W, C)."""
    _, height, width, channels = h.shape
    h = h.reshape(1, height, width, 2, 2, channels // 4)
    return h.transpose(0, 1, 3, 2, 4, 5).reshape(1, 2 * height, 2 * width, channels // 4)


def _conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs, zero: bool = False) -> nnx.Conv:
    init = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
    return nnx.Conv(inputs, outputs, (size, size), kernel_init=init, rngs=rngs)


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=channels // 8, rngs=rngs)


class Block(nnx.Module):
    """Residual block of two 3x3 convolutions, with scale and shift from the embedding in between.

    Args:
        channels: channels of input and output.
        embedding: length of the vector that carries the noise level and the label.
        dropout: probability of dropping a unit where a key is given.
        rngs: draws the initial weights.
    """

    def __init__(self, channels: int, embedding: int, dropout: float, *, rngs: nnx.Rngs):
        self.norm_in = _norm(channels, rngs)
        self.conv_in = _conv(channels, channels, 3, rngs)
        self.film = nnx.Linear(embedding, 2 * channels, rngs=rngs)
        self.norm_out = _norm(channels, rngs)
        self.dropout = nnx.Dropout(dropout)
        self.conv_out = _conv(channels, channels, 3, rngs, zero=True)

    def __call__(self, h: Image, embedding: Array, key: Key | None) -> Image:
        """Apply the block; `key` draws the dropped units, and None drops none."""
        scale, shift = jnp.split(self.film(embedding)[None, None, None], 2, axis=-1)
        out = self.conv_in(nnx.silu(self.norm_in(h)))
        out = nnx.silu(self.norm_out(out) * (1 + scale) + shift)
        return h + self.conv_out(self.dropout(out, deterministic=key is None, rngs=key))


class Attention(nnx.Module):
    """Residual self-attention over all pixels, in heads of 64 channels.

    Args:
        channels: channels of input and output.
        rngs: draws the initial weights.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.heads = max(1, channels // 64)
        self.norm = _norm(channels, rngs)
        self.qkv = _conv(channels, 3 * channels, 1, rngs)
        self.out = _conv(channels, channels, 1, rngs, zero=True)

    def __call__(self, h: Image) -> Image:
        """Apply the layer."""
        _, height, width, _ = h.shape
        qkv = self.qkv(self.norm(h)).reshape(1, height * width, 3, self.heads, -1)
        out = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return h + self.out(out.reshape(h.shape))


class Detail(nnx.Module):
    """Input features: pixel values and sinusoids of them, with gates set by the embedding.

    At low noise the prediction depends on the last hundredths of a pixel's value. Sinusoids resolve
    them, and convolutions alone learn them slowly (Variational Diffusion Models, arXiv 2107.00630,
    section 5.1). At high noise the sinusoids are a random pattern, and the gates close.

    Args:
        inputs: channels of the image.
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

    def __call__(self, h: Image, embedding: Array) -> Image:
        """Return the features: `size` channels."""
        angles = [frequency * h for frequency in self.frequencies]
        values = [h, *map(jnp.sin, angles), *map(jnp.cos, angles)]
        return jnp.concatenate(values, -1) * nnx.sigmoid(self.gate(embedding))


def _keys(key: Key | None) -> Iterator[Key | None]:
    """Yield one key per block, or None for each if there is no key."""
    return (None if key is None else jax.random.fold_in(key, i) for i in count())


class UNet(nnx.Module):
    """A compact residual U-Net: `net(x, t, cond) -> out` on one image (H, W, C).

    Level k works at 1/2^(k+1) of the resolution with `channels[k]` channels. It has `blocks`
    residual blocks on the way down, and as many on the way up, each after a 1x1 convolution that
    merges the output of its partner on the way down. A new network returns zeros.

    Images whose sides are not multiples of 2^len(channels) are padded with zeros inside the
    network, and its output is cropped. The sample itself, and so its dimension, stays unpadded.

    Args:
        shape: (H, W, C) of one image.
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
        ValueError: if the shape is not (H, W, C), the channels do not split into groups or the
            dropout is not in [0, 1).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
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
        if len(shape) != 3:
            raise ValueError(f"a U-Net takes images of shape (H, W, C), got {tuple(shape)}")
        if not channels or any(c < 8 or c % 8 or (c > 64 and c % 64) for c in channels):
            raise ValueError(
                f"channels must be multiples of 8 up to 64 and of 64 above, got {tuple(channels)}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.shape = tuple(shape)
        self.embed = Embedding(embedding, num_classes, num_augmentations, rngs=rngs)
        self.detail = Detail(4 * shape[2], frequencies, embedding, rngs=rngs)
        # A path around every normalization, which would hide how strong the noise in x is.
        self.shallow = _conv(self.detail.size, 4 * shape[2], 3, rngs, zero=True)
        block = partial(Block, embedding=embedding, dropout=dropout, rngs=rngs)
        inputs = self.detail.size
        self.enter: nnx.List = nnx.List()
        self.down: nnx.List = nnx.List()
        self.merge: nnx.List = nnx.List()
        self.up: nnx.List = nnx.List()
        self.leave: nnx.List = nnx.List()
        for k, c in enumerate(channels):
            outputs = 4 * shape[2] if k == 0 else 4 * channels[k - 1]
            self.enter.append(_conv(inputs, c, 3 if k == 0 else 1, rngs))
            self.down.append(nnx.List(block(c) for _ in range(blocks)))
            self.merge.append(nnx.List(_conv(2 * c, c, 1, rngs) for _ in range(blocks)))
            self.up.append(nnx.List(block(c) for _ in range(blocks)))
            self.leave.append(_conv(c, outputs, 3 if k == 0 else 1, rngs, zero=k == 0))
            inputs = 4 * c
        self.middle = block(channels[-1])
        self.attention = Attention(channels[-1], rngs=rngs)
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
        """Apply the network to one image.

        Args:
            x: the noisy image, (H, W, C).
            t: the noise level as the parametrization passes it.
            cond: a class label, or None.
            key: draws the units to drop in training; None drops none.
            augmentation: number of the augmentation that was applied to the image in training, or
                None.

        Returns:
            The network's prediction, (H, W, C).

        Raises:
            ValueError: if x has another shape or the label is not one of this network.
        """
        check_shape(x, self.shape)
        embedding = self.embed(t, cond, augmentation)
        keys = _keys(key)
        height, width, _ = self.shape
        step = 2 ** len(self.down)
        padding = ((0, 0), (0, -height % step), (0, -width % step), (0, 0))
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
        return h[0, :height, :width].astype(x.dtype)
