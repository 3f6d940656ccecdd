"""A variational autoencoder of images, in whose latents a diffusion model may live.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". The
attributes have the names of diffusers' `AutoencoderKL`, whose weights this network takes.
"""

from math import log

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.typing import Key, Sample

__all__ = ["AutoencoderKL"]

Image = Float[Array, "1 h w c"]  # with the batch axis that flax's layers count on


def _conv(inputs: int, outputs: int, rngs: nnx.Rngs, size: int = 3) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (size, size), rngs=rngs)


def _norm(channels: int, groups: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(
        channels,
        num_groups=groups,
        epsilon=1e-6,
        use_fast_variance=False,  # which cancels where the mean is large
        rngs=rngs,
    )


class Resnet(nnx.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, rngs: nnx.Rngs):
        self.norm1 = _norm(inputs, groups, rngs)
        self.conv1 = _conv(inputs, outputs, rngs)
        self.norm2 = _norm(outputs, groups, rngs)
        self.conv2 = _conv(outputs, outputs, rngs)
        self.conv_shortcut = None if inputs == outputs else _conv(inputs, outputs, rngs, 1)

    def __call__(self, h: Image) -> Image:
        out = self.conv1(nnx.silu(self.norm1(h)))
        out = self.conv2(nnx.silu(self.norm2(out)))
        return out + (h if self.conv_shortcut is None else self.conv_shortcut(h))


class Attention(nnx.Module):
    """Residual self-attention over all pixels, in one head."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        self.group_norm = _norm(channels, groups, rngs)
        self.to_q = nnx.Linear(channels, channels, rngs=rngs)
        self.to_k = nnx.Linear(channels, channels, rngs=rngs)
        self.to_v = nnx.Linear(channels, channels, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(channels, channels, rngs=rngs)])

    def __call__(self, h: Image) -> Image:
        pixels = self.group_norm(h).reshape(1, -1, 1, h.shape[-1])
        query, key, value = (layer(pixels) for layer in (self.to_q, self.to_k, self.to_v))
        out = jax.nn.dot_product_attention(query, key, value)
        return h + self.to_out[0](out).reshape(h.shape)


class MidBlock(nnx.Module):
    """Two residual blocks, with attention in between where there is any."""

    def __init__(self, channels: int, groups: int, attention: bool, *, rngs: nnx.Rngs):
        self.resnets = nnx.List(Resnet(channels, channels, groups, rngs=rngs) for _ in range(2))
        self.attentions = nnx.List([Attention(channels, groups, rngs=rngs)] if attention else [])

    def __call__(self, h: Image) -> Image:
        h = self.resnets[0](h)
        for attention in self.attentions:
            h = attention(h)
        return self.resnets[1](h)


class Downsample(nnx.Module):
    """Half the resolution by a convolution that sees no pixel above or left of its own."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=2, padding="VALID", rngs=rngs)

    def __call__(self, h: Image) -> Image:
        return self.conv(jnp.pad(h, ((0, 0), (0, 1), (0, 1), (0, 0))))


class Upsample(nnx.Module):
    """Every pixel four times, then a convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = _conv(channels, channels, rngs)

    def __call__(self, h: Image) -> Image:
        return self.conv(h.repeat(2, axis=1).repeat(2, axis=2))


def _resnets(inputs: int, outputs: int, number: int, groups: int, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List(
        Resnet(inputs if i == 0 else outputs, outputs, groups, rngs=rngs) for i in range(number)
    )


class DownBlock(nnx.Module):
    """One level of the encoder."""

    def __init__(
        self, inputs: int, outputs: int, number: int, groups: int, last: bool, *, rngs: nnx.Rngs
    ):
        self.resnets = _resnets(inputs, outputs, number, groups, rngs)
        self.downsamplers = nnx.List([] if last else [Downsample(outputs, rngs=rngs)])

    def __call__(self, h: Image) -> Image:
        for layer in (*self.resnets, *self.downsamplers):
            h = layer(h)
        return h


class UpBlock(nnx.Module):
    """One level of the decoder."""

    def __init__(
        self, inputs: int, outputs: int, number: int, groups: int, last: bool, *, rngs: nnx.Rngs
    ):
        self.resnets = _resnets(inputs, outputs, number, groups, rngs)
        self.upsamplers = nnx.List([] if last else [Upsample(outputs, rngs=rngs)])

    def __call__(self, h: Image) -> Image:
        for layer in (*self.resnets, *self.upsamplers):
            h = layer(h)
        return h


class Encoder(nnx.Module):
    """An image to the mean and log-variance of its latent, before `quant_conv`."""

    def __init__(
        self,
        channels: tuple[int, ...],
        inputs: int,
        outputs: int,
        number: int,
        groups: int,
        attention: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.conv_in = _conv(inputs, channels[0], rngs)
        pairs = zip((channels[0], *channels), channels, strict=False)
        self.down_blocks = nnx.List(
            DownBlock(a, b, number, groups, i == len(channels) - 1, rngs=rngs)
            for i, (a, b) in enumerate(pairs)
        )
        self.mid_block = MidBlock(channels[-1], groups, attention, rngs=rngs)
        self.conv_norm_out = _norm(channels[-1], groups, rngs)
        self.conv_out = _conv(channels[-1], 2 * outputs, rngs)

    def __call__(self, image: Image) -> Image:
        h = self.conv_in(image)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nnx.Module):
    """A latent, past `post_quant_conv`, to its image."""

    def __init__(
        self,
        channels: tuple[int, ...],
        inputs: int,
        outputs: int,
        number: int,
        groups: int,
        attention: bool,
        *,
        rngs: nnx.Rngs,
    ):
        upwards = channels[::-1]
        self.conv_in = _conv(inputs, upwards[0], rngs)
        self.mid_block = MidBlock(upwards[0], groups, attention, rngs=rngs)
        pairs = zip((upwards[0], *upwards), upwards, strict=False)
        self.up_blocks = nnx.List(
            UpBlock(a, b, number + 1, groups, i == len(channels) - 1, rngs=rngs)
            for i, (a, b) in enumerate(pairs)
        )
        self.conv_norm_out = _norm(channels[0], groups, rngs)
        self.conv_out = _conv(channels[0], outputs, rngs)

    def __call__(self, latent: Image) -> Image:
        h = self.mid_block(self.conv_in(latent))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(nnx.silu(self.conv_norm_out(h)))


class AutoencoderKL(nnx.Module):
    """`encode(image) -> x` and `decode(x) -> image`, on ONE image of `image_shape` (H, W, C).

    x is in the coordinates of a diffusion model of latents: `(z - shift_factor) * scaling_factor`
    of the autoencoder's own z.

    Args:
        shape: (h, w, c) of one latent. The image is 2^(len(channels) - 1) times as high and wide.
        image_channels: of the image.
        channels: of each level from the image inwards, multiples of `groups`.
        layers: residual blocks of each level of the encoder; the decoder has one more.
        groups: of every group norm.
        scaling_factor, shift_factor: from z to the model's coordinates.
        quant, post_quant: whether a 1x1 convolution ends the encoder and begins the decoder.
        attention: whether the middle attends.
        rngs: makes the initial weights, and is not kept.

    Raises:
        ValueError: if the shape is not (h, w, c), the channels do not split into groups or the
            scaling factor is 0; when called, if the image or the latent has another shape.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        image_channels: int = 3,
        channels: tuple[int, ...] = (128, 256, 512, 512),
        layers: int = 2,
        groups: int = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float = 0.0,
        quant: bool = True,
        post_quant: bool = True,
        attention: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 3:
            raise ValueError(f"an autoencoder takes latents (h, w, c), got shape {tuple(shape)}")
        if not channels or groups < 1 or any(c % groups for c in channels):
            raise ValueError(f"channels must be multiples of {groups}, got {tuple(channels)}")
        if scaling_factor == 0:
            raise ValueError("scaling_factor must not be 0: latents would be lost")
        height, width, inside = shape
        factor = 2 ** (len(channels) - 1)
        self.shape = (height, width, inside)
        self.image_shape = (factor * height, factor * width, image_channels)
        self.scaling_factor = scaling_factor
        self.shift_factor = shift_factor
        sizes = (layers, groups, attention)
        self.encoder = Encoder(tuple(channels), image_channels, inside, *sizes, rngs=rngs)
        self.decoder = Decoder(tuple(channels), inside, image_channels, *sizes, rngs=rngs)
        self.quant_conv = _conv(2 * inside, 2 * inside, rngs, 1) if quant else None
        self.post_quant_conv = _conv(inside, inside, rngs, 1) if post_quant else None

    def posterior(self, image: Sample) -> tuple[Sample, Sample]:
        """Mean and log-variance of the image's Gaussian latent, (h, w, c) each."""
        if image.shape != self.image_shape:
            raise ValueError(
                f"the image has shape {image.shape} and this autoencoder takes {self.image_shape}"
            )
        h = self.encoder(image[None])
        h = h if self.quant_conv is None else self.quant_conv(h)
        mean, log_variance = jnp.split(h[0].astype(image.dtype), 2, axis=-1)
        # Within what exp takes, as in training.
        log_variance = jnp.clip(log_variance, -30.0, 20.0)
        scale = self.scaling_factor
        return (mean - self.shift_factor) * scale, log_variance + 2 * log(abs(scale))

    def encode(self, image: Sample, *, key: Key | None = None) -> Sample:
        """The mean of the image's latent, or with a `key` a draw from it."""
        mean, log_variance = self.posterior(image)
        if key is None:
            return mean
        return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, mean.dtype)

    def decode(self, x: Sample) -> Sample:
        """The image of a latent."""
        if x.shape != self.shape:
            raise ValueError(
                f"the latent has shape {x.shape} and this autoencoder takes {self.shape}"
            )
        z = (x / self.scaling_factor + self.shift_factor)[None]
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return self.decoder(z)[0].astype(x.dtype)
