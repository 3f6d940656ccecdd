"""An autoencoder of images with a codebook (VQGAN), as the first latent diffusion models have it.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.autoencoder import Decoder, Encoder, check_fits, check_sizes
from dgjax.networks.unet2d_parts import Image, conv
from dgjax.typing import Key, Sample

__all__ = ["VQModel"]


class Codebook(nnx.Module):
    """Replace each vector of a latent by the nearest entry of a table.

    Args:
        entries: number of entries.
        size: length of an entry.
        rngs: draws the initial entries.
    """

    def __init__(self, entries: int, size: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(entries, size, rngs=rngs)

    def __call__(self, z: Image) -> Image:
        """Apply the layer."""
        table: Float[Array, "entries size"] = self.embedding.embedding[...]
        # |z - e|^2 without |z|^2, which is common to all entries e.
        distance = jnp.sum(table**2, -1) - 2 * z @ table.T
        return table[jnp.argmin(distance, -1)]


class VQModel(nnx.Module):
    """The autoencoder with a codebook of latent diffusion (arXiv 2112.10752), on one image.

    Latents are continuous: those before the codebook, times `scaling_factor`. The decoder first
    replaces each of their vectors by the nearest entry of the codebook (VQ-VAE, arXiv 1711.00937).
    So `decode` is constant between the entries, and its derivatives there are 0.

    Args:
        shape: (h, w, c) of one latent. Images are 2^(len(channels) - 1) times as high and wide.
        entries: number of entries of the codebook.
        inside: channels that the encoder makes and the decoder takes; c unless given.
        image_channels: channels C of an image.
        channels: channels of each level from the image inwards, multiples of `groups`.
        layers: residual blocks of each level of the encoder; the decoder has one more.
        groups: groups of each normalization.
        scaling_factor: multiplies the latents; not 0.
        attention: whether the middle levels have attention.
        rngs: draws the initial weights.

    Raises:
        ValueError: if the shape is not (h, w, c), the channels do not split into groups or the
            scaling factor is 0.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        entries: int = 256,
        inside: int | None = None,
        image_channels: int = 3,
        channels: tuple[int, ...] = (64,),
        layers: int = 1,
        groups: int = 32,
        scaling_factor: float = 0.18215,
        attention: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        check_sizes(shape, channels, groups, scaling_factor)
        height, width, size = shape
        factor = 2 ** (len(channels) - 1)
        self.shape = (height, width, size)
        self.image_shape = (factor * height, factor * width, image_channels)
        self.scaling_factor = scaling_factor
        inside = size if inside is None else inside
        channels, options = tuple(channels), (layers, groups, attention)
        self.encoder = Encoder(image_channels, channels, inside, *options, rngs=rngs)
        self.quant_conv = conv(inside, size, rngs, 1)
        self.quantize = Codebook(entries, size, rngs=rngs)
        self.post_quant_conv = conv(size, inside, rngs, 1)
        self.decoder = Decoder(inside, channels[::-1], image_channels, *options, rngs=rngs)

    def encode(self, image: Sample, *, key: Key | None = None) -> Sample:
        """Return the latent of an image.

        Args:
            image: of `image_shape`.
            key: not used: the latent is a function of the image.

        Returns:
            The latent, of `shape`.

        Raises:
            ValueError: if the image has another shape.
        """
        check_fits("image", image.shape, self.image_shape)
        z = self.quant_conv(self.encoder(image[None]))[0]
        return z.astype(image.dtype) * self.scaling_factor

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
        z = (x / self.scaling_factor)[None]
        return self.decoder(self.post_quant_conv(self.quantize(z)))[0].astype(x.dtype)
