"""A variational autoencoder of images, in whose latents a diffusion model may live.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". The
attributes have the names of diffusers' `AutoencoderKL`, whose weights this network takes.
"""

from math import log

import jax
import jax.numpy as jnp
from flax import nnx

from dgjax.networks.unet2d_blocks import DownBlock, Kind, MidBlock
from dgjax.networks.unet2d_parts import Image, Resnet, Style, Upsample, conv, norm
from dgjax.typing import Key, Sample

__all__ = ["AutoencoderKL"]


def _style(groups: int) -> Style:
    return Style(
        embedding=None,
        groups=groups,
        eps=1e-6,
        scale_shift=False,
        head=None,
        activation="silu",
        padding=0,
    )


class UpBlock(nnx.Module):
    """Residual blocks, then twice the resolution unless it is the last level."""

    def __init__(
        self, inputs: int, outputs: int, layers: int, last: bool, style: Style, *, rngs: nnx.Rngs
    ):
        sizes = [inputs] + (layers - 1) * [outputs]
        groups = Kind().groups(inputs, outputs, style)
        self.resnets = nnx.List(Resnet(n, outputs, style, groups, rngs=rngs) for n in sizes)
        self.upsamplers = nnx.List([] if last else [Upsample(outputs, rngs=rngs)])

    def __call__(self, h: Image) -> Image:
        for layer in (*self.resnets, *self.upsamplers):
            h = layer(h, None)
        return h


class Encoder(nnx.Module):
    """An image to the mean and log-variance of its latent, before `quant_conv`."""

    def __init__(
        self,
        inputs: int,
        channels: tuple[int, ...],
        outputs: int,
        layers: int,
        groups: int,
        attention: bool,
        *,
        rngs: nnx.Rngs,
    ):
        style = _style(groups)
        self.conv_in = conv(inputs, channels[0], rngs)
        above = (channels[0], *channels[:-1])
        last = len(channels) - 1
        self.down_blocks = nnx.List(
            DownBlock(Kind(), a, b, layers, i == last, style, rngs=rngs)
            for i, (a, b) in enumerate(zip(above, channels, strict=True))
        )
        self.mid_block = MidBlock(channels[-1], style, attention, groups, 1.0, rngs=rngs)
        self.conv_norm_out = norm(channels[-1], groups, style.eps, rngs)
        self.conv_out = conv(channels[-1], 2 * outputs, rngs)

    def __call__(self, image: Image) -> Image:
        h = self.conv_in(image)
        for block in self.down_blocks:
            h, *_ = block(h, image, None)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(h, None))))


class Decoder(nnx.Module):
    """A latent, past `post_quant_conv`, to its image."""

    def __init__(
        self,
        inputs: int,
        channels: tuple[int, ...],
        outputs: int,
        layers: int,
        groups: int,
        attention: bool,
        *,
        rngs: nnx.Rngs,
    ):
        style = _style(groups)
        self.conv_in = conv(inputs, channels[0], rngs)
        self.mid_block = MidBlock(channels[0], style, attention, groups, 1.0, rngs=rngs)
        above = (channels[0], *channels[:-1])
        last = len(channels) - 1
        self.up_blocks = nnx.List(
            UpBlock(a, b, layers + 1, i == last, style, rngs=rngs)
            for i, (a, b) in enumerate(zip(above, channels, strict=True))
        )
        self.conv_norm_out = norm(channels[-1], groups, style.eps, rngs)
        self.conv_out = conv(channels[-1], outputs, rngs)

    def __call__(self, latent: Image) -> Image:
        h = self.mid_block(self.conv_in(latent), None)
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
        channels = tuple(channels)
        options = (layers, groups, attention)
        self.encoder = Encoder(image_channels, channels, inside, *options, rngs=rngs)
        self.decoder = Decoder(inside, channels[::-1], image_channels, *options, rngs=rngs)
        self.quant_conv = conv(2 * inside, 2 * inside, rngs, 1) if quant else None
        self.post_quant_conv = conv(inside, inside, rngs, 1) if post_quant else None

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
