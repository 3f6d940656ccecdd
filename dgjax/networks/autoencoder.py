"""A variational autoencoder of images, whose latents a diffusion model can be trained on.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from dgjax.networks.unet2d_blocks import DownBlock, MidBlock
from dgjax.networks.unet2d_kinds import BlockKind
from dgjax.networks.unet2d_parts import BlockSettings, Image, Resnet, Upsample, conv, group_norm
from dgjax.typing import Key, Sample

__all__ = ["AutoencoderKL", "Decoder", "Encoder", "check_fits", "check_sizes"]


def _settings(groups: int) -> BlockSettings:
    return BlockSettings(
        embedding=None,
        groups=groups,
        eps=1e-6,
        scale_shift=False,
        head_channels=None,
        activation="silu",
        padding=0,
    )


class UpBlock(nnx.Module):
    """One level of the decoder: residual blocks, then twice the resolution.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        layers: number of residual blocks.
        last: whether this is the highest level, which keeps its resolution.
        settings: of all blocks of the network.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        layers: int,
        last: bool,
        settings: BlockSettings,
        *,
        rngs: nnx.Rngs,
    ):
        sizes = [inputs] + (layers - 1) * [outputs]
        groups = BlockKind().groups(inputs, outputs, settings)
        self.resnets = nnx.List(Resnet(n, outputs, settings, groups, rngs=rngs) for n in sizes)
        self.upsamplers = nnx.List([] if last else [Upsample(outputs, rngs=rngs)])

    def __call__(self, h: Image) -> Image:
        """Apply the level."""
        for layer in (*self.resnets, *self.upsamplers):
            h = layer(h, None)
        return h


class Encoder(nnx.Module):
    """The convolutional encoder: an image to features at the latent's resolution.

    Args:
        inputs: channels of an image.
        channels: channels of each level, from the image inwards.
        outputs: channels of the features.
        layers: residual blocks of each level.
        groups: groups of each normalization.
        attention: whether the middle level has attention.
        rngs: draws the initial weights.
    """

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
        settings = _settings(groups)
        self.conv_in = conv(inputs, channels[0], rngs)
        above = (channels[0], *channels[:-1])
        last = len(channels) - 1
        self.down_blocks = nnx.List(
            DownBlock(BlockKind(), a, b, layers, i == last, settings, rngs=rngs)
            for i, (a, b) in enumerate(zip(above, channels, strict=True))
        )
        self.mid_block = MidBlock(channels[-1], settings, attention, groups, 1.0, rngs=rngs)
        self.conv_norm_out = group_norm(channels[-1], groups, settings.eps, rngs)
        self.conv_out = conv(channels[-1], outputs, rngs)

    def __call__(self, image: Image) -> Image:
        """Apply the encoder."""
        h = self.conv_in(image)
        for block in self.down_blocks:
            h, *_ = block(h, image, None)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(h, None))))


class Decoder(nnx.Module):
    """The convolutional decoder: a latent to an image.

    Args:
        inputs: channels of a latent.
        channels: channels of each level, from the latent outwards.
        outputs: channels of an image.
        layers: residual blocks of each level of the encoder; the decoder has one more.
        groups: groups of each normalization.
        attention: whether the middle level has attention.
        rngs: draws the initial weights.
    """

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
        settings = _settings(groups)
        self.conv_in = conv(inputs, channels[0], rngs)
        self.mid_block = MidBlock(channels[0], settings, attention, groups, 1.0, rngs=rngs)
        above = (channels[0], *channels[:-1])
        last = len(channels) - 1
        self.up_blocks = nnx.List(
            UpBlock(a, b, layers + 1, i == last, settings, rngs=rngs)
            for i, (a, b) in enumerate(zip(above, channels, strict=True))
        )
        self.conv_norm_out = group_norm(channels[-1], groups, settings.eps, rngs)
        self.conv_out = conv(channels[-1], outputs, rngs)

    def __call__(self, latent: Image) -> Image:
        """Apply the decoder."""
        h = self.mid_block(self.conv_in(latent), None)
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(nnx.silu(self.conv_norm_out(h)))


def check_sizes(
    shape: tuple[int, ...],
    channels: tuple[int, ...],
    groups: int,
    scaling_factor: float | tuple[float, ...],
) -> None:
    """Check the arguments that autoencoders share.

    Raises:
        ValueError: if the shape is not (h, w, c), the channels do not split into groups or the
            scaling factor is 0.
    """
    if len(shape) != 3:
        raise ValueError(f"an autoencoder takes latents (h, w, c), got shape {tuple(shape)}")
    if not channels or groups < 1 or any(c % groups for c in channels):
        raise ValueError(f"channels must be multiples of {groups}, got {tuple(channels)}")
    if not np.all(scaling_factor):
        raise ValueError("scaling_factor must not be 0, which would make every latent 0")


def check_fits(what: str, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Check the shape of an image or of a latent.

    Raises:
        ValueError: if it is not the expected one.
    """
    if given != expected:
        raise ValueError(f"the {what} has shape {given} and this autoencoder takes {expected}")


class AutoencoderKL(nnx.Module):
    """The autoencoder of latent diffusion (arXiv 2112.10752), on one image at a time.

    `encode` maps an image of `image_shape` (H, W, C) to a latent of `shape` (h, w, c), and
    `decode` maps back. Latents are in the coordinates of the diffusion model that was trained on
    them: `(z - shift_factor) * scaling_factor`, with z the latent of the autoencoder itself. Both
    factors are one number, or one for each channel of a latent.

    Args:
        shape: (h, w, c) of one latent. Images are 2^(len(channels) - 1) times as high and wide.
        image_channels: channels C of an image.
        channels: channels of each level from the image inwards, multiples of `groups`.
        layers: residual blocks of each level of the encoder; the decoder has one more.
        groups: groups of each normalization.
        scaling_factor: multiplies the shifted latents; positive or negative, not 0.
        shift_factor: subtracted from z.
        quant: whether a 1x1 convolution ends the encoder.
        post_quant: whether a 1x1 convolution begins the decoder.
        attention: whether the middle levels have attention.
        rngs: draws the initial weights.

    Raises:
        ValueError: if the shape is not (h, w, c), the channels do not split into groups or the
            scaling factor is 0.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        image_channels: int = 3,
        channels: tuple[int, ...] = (128, 256, 512, 512),
        layers: int = 2,
        groups: int = 32,
        scaling_factor: float | tuple[float, ...] = 0.18215,
        shift_factor: float | tuple[float, ...] = 0.0,
        quant: bool = True,
        post_quant: bool = True,
        attention: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        check_sizes(shape, channels, groups, scaling_factor)
        height, width, inside = shape
        for name, factor in (("scaling", scaling_factor), ("shift", shift_factor)):
            if np.shape(factor) not in ((), (inside,)):
                raise ValueError(
                    f"{name}_factor must be one number or one for each of {inside} channels, got "
                    f"{factor}"
                )
        enlarged = 2 ** (len(channels) - 1)
        self.shape = (height, width, inside)
        self.image_shape = (enlarged * height, enlarged * width, image_channels)
        self.scaling_factor = scaling_factor
        self.shift_factor = shift_factor
        channels = tuple(channels)
        options = (layers, groups, attention)
        self.encoder = Encoder(image_channels, channels, 2 * inside, *options, rngs=rngs)
        self.decoder = Decoder(inside, channels[::-1], image_channels, *options, rngs=rngs)
        self.quant_conv = conv(2 * inside, 2 * inside, rngs, 1) if quant else None
        self.post_quant_conv = conv(inside, inside, rngs, 1) if post_quant else None

    def posterior(self, image: Sample) -> tuple[Sample, Sample]:
        """Return the Gaussian distribution of an image's latent.

        Args:
            image: of `image_shape`.

        Returns:
            Mean and log-variance of each element, both of `shape`.

        Raises:
            ValueError: if the image has another shape.
        """
        check_fits("image", image.shape, self.image_shape)
        h = self.encoder(image[None])
        h = h if self.quant_conv is None else self.quant_conv(h)
        mean, log_variance = jnp.split(h[0].astype(image.dtype), 2, axis=-1)
        # The range in which exp neither overflows nor vanishes; training clips to the same.
        log_variance = jnp.clip(log_variance, -30.0, 20.0)
        scale, shift = self._coordinates(image.dtype)
        return (mean - shift) * scale, log_variance + 2 * jnp.log(jnp.abs(scale))

    def encode(self, image: Sample, *, key: Key | None = None) -> Sample:
        """Return the latent of an image.

        Args:
            image: of `image_shape`.
            key: draws the latent from its distribution; None returns the mean.

        Returns:
            The latent, of `shape`.

        Raises:
            ValueError: if the image has another shape.
        """
        mean, log_variance = self.posterior(image)
        if key is None:
            return mean
        return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, mean.dtype)

    def decode(self, x: Sample) -> Sample:
        """Return the image of a latent.

        Args:
            x: of `shape`.

        Returns:
            The image, of `image_shape`.

        Raises:
            ValueError: if the latent has another shape.
        """
        check_fits("latent", x.shape, self.shape)
        scale, shift = self._coordinates(x.dtype)
        z = (x / scale + shift)[None]
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return self.decoder(z)[0].astype(x.dtype)

    def _coordinates(self, dtype: Any) -> tuple[Array, Array]:
        """Return scaling and shift as arrays."""
        return jnp.asarray(self.scaling_factor, dtype), jnp.asarray(self.shift_factor, dtype)
