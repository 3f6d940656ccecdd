"""DDPM++ and NCSN++ of Song et al. 2021, as in Karras et al. 2022 (EDM), where it is SongUNet."""

from math import sqrt

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dgjax.networks.edm_blocks import Style, one_hot
from dgjax.networks.edm_trunk import Trunk
from dgjax.networks.unet2d import Positional
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["SongUNet"]

EMBEDDINGS = ("positional", "fourier")


class Fourier(nnx.Module):
    """Sines and cosines of the noise level at random frequencies, drawn once and not learnt."""

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.freqs = nnx.Param(16 * rngs.params.normal((size // 2,)))

    def __call__(self, t: Scalar) -> Array:
        angles = 2 * jnp.pi * t * jax.lax.stop_gradient(self.freqs[...])
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class SongUNet(nnx.Module):
    """`net(x, t, cond) -> out` on ONE image (H, W, C); `out` has its shape.

    With `parametrization.preconditioned` t is log(sigma)/4. DDPM++ has the defaults; NCSN++ has
    `embedding_type="fourier"`, `encoder_type="residual"`, `resample_filter=(1, 3, 3, 1)` and
    `channel_mult_noise=2`.

    Args:
        shape: (H, W, C) of one image.
        num_classes: number of labels, or None for a network that takes none. The label
            `num_classes`, like `cond` None, stands for no label.
        augment_dim: length of the vector that tells how an image was augmented, or None.
        model_channels: what the channels of each level are multiples of.
        channel_mult: the multiples.
        channel_mult_emb, channel_mult_noise: the same for the vector that carries noise and
            class, and for the features of the noise level that it is made from.
        num_blocks: residual blocks of a level on the way down; one more on the way up.
        attn_resolutions: heights of an image at which blocks attend to all of it.
        embedding_type: "positional" or "fourier".
        encoder_type: "standard"; or "skip" or "residual", by which a second image goes along.
        decoder_type: "standard" or "skip".
        resample_filter: which smooths where the resolution changes; of even length.
        rngs: makes the initial weights, and is not kept.

    Raises:
        ValueError: if a name is unknown or sizes do not fit each other; when called, if x has
            another shape or a label is given that the network cannot take.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int | None = None,
        augment_dim: int | None = None,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        channel_mult_noise: int = 1,
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        embedding_type: str = "positional",
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: tuple[float, ...] = (1, 1),
        *,
        rngs: nnx.Rngs,
    ):
        if embedding_type not in EMBEDDINGS:
            raise ValueError(
                f"embedding_type {embedding_type!r} is unknown: there is {', '.join(EMBEDDINGS)}"
            )
        self.shape, self.num_classes = tuple(shape), num_classes
        noise, size = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        style = Style(
            embedding=size,
            eps=1e-6,
            adaptive=False,
            head=None,
            scale=sqrt(2),
            projects=True,
            everywhere=False,
            row=tuple(resample_filter),
        )
        self.map_noise = (
            Fourier(noise, rngs=rngs)
            if embedding_type == "fourier"
            else Positional(noise, shift=1, cosines_first=False)
        )
        self.map_label = None if num_classes is None else nnx.Linear(num_classes, noise, rngs=rngs)
        self.map_augment = (
            None
            if augment_dim is None
            else nnx.Linear(augment_dim, noise, use_bias=False, rngs=rngs)
        )
        self.map_layer0 = nnx.Linear(noise, size, rngs=rngs)
        self.map_layer1 = nnx.Linear(size, size, rngs=rngs)
        self.trunk = Trunk(
            shape,
            model_channels,
            tuple(model_channels * multiple for multiple in channel_mult),
            num_blocks,
            tuple(attn_resolutions),
            style,
            encoder_type,
            decoder_type,
            rngs=rngs,
        )

    def __call__(
        self, x: Sample, t: Scalar, cond: Cond = None, *, augmentation: Array | None = None
    ) -> Sample:
        if x.shape != self.shape:
            raise ValueError(f"x has shape {x.shape} and this network takes {self.shape}")
        h = self.map_noise(t)
        label = one_hot(cond, self.num_classes)
        if label is not None and self.map_label is not None:
            h = h + self.map_label(label * sqrt(label.size))
        if augmentation is not None and self.map_augment is not None:
            h = h + self.map_augment(augmentation)
        embedding = nnx.silu(self.map_layer1(nnx.silu(self.map_layer0(h))))
        return self.trunk(x[None], embedding)[0].astype(x.dtype)
