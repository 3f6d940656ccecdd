"""SongUNet of EDM (arXiv 2206.00364): DDPM++ and NCSN++ (arXiv 2011.13456)."""

from math import sqrt

from flax import nnx
from jaxtyping import Array

from dgjax.networks.edm_blocks import EDMSettings, one_hot, optional_linear
from dgjax.networks.edm_trunk import Trunk
from dgjax.networks.time_features import EDMFourier, Positional
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["SongUNet"]

EMBEDDINGS = ("positional", "fourier")


class SongUNet(nnx.Module):
    """DDPM++ and NCSN++ as in EDM: `net(x, t, cond) -> out` on one image (H, W, C).

    The defaults are DDPM++. NCSN++ has `embedding_type="fourier"`, `encoder_type="residual"`,
    `resample_filter=(1, 3, 3, 1)` and `channel_mult_noise=2`. A new network returns zeros. The
    parametrization `preconditioned` passes log(sigma)/4 as t.

    Args:
        shape: (H, W, C) of one image.
        num_classes: number of labels, or None for a network without labels. The label
            `num_classes`, like `cond` None, stands for no label.
        augment_dim: length of the vector that describes an augmentation, or None.
        model_channels: base number of channels.
        channel_mult: channels of each level, as multiples of `model_channels`.
        channel_mult_emb: length of the embedding of noise level and class, as a multiple of
            `model_channels`.
        channel_mult_noise: number of features of the noise level, as a multiple of
            `model_channels`.
        num_blocks: residual blocks of a level on the way down; one more on the way up.
        attn_resolutions: heights of an image at which blocks have attention.
        embedding_type: features of the noise level, "positional" or "fourier".
        encoder_type: "standard"; "skip" adds the downsampled input at each level; "residual" adds
            the downsampled sum of all levels so far.
        decoder_type: "standard", or "skip" if all levels add to the output.
        resample_filter: smoothing filter at changes of resolution, of even length.
        rngs: draws the initial weights.

    Raises:
        ValueError: if a name is unknown or sizes do not fit each other.
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
                f"embedding_type {embedding_type!r} is unknown: expected one of "
                f"{', '.join(EMBEDDINGS)}"
            )
        self.shape, self.num_classes = tuple(shape), num_classes
        noise, size = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        settings = EDMSettings(
            embedding=size,
            eps=1e-6,
            scale_shift=False,
            head_channels=None,
            scale=sqrt(2),
            shortcut=True,
            attend_all=False,
            kernel=tuple(resample_filter),
        )
        self.map_noise = (
            EDMFourier(noise, rngs=rngs)
            if embedding_type == "fourier"
            else Positional(noise, shift=1, cosines_first=False)
        )
        self.map_label = optional_linear(num_classes, noise, rngs, use_bias=True)
        self.map_augment = optional_linear(augment_dim, noise, rngs)
        self.map_layer0 = nnx.Linear(noise, size, rngs=rngs)
        self.map_layer1 = nnx.Linear(size, size, rngs=rngs)
        self.trunk = Trunk(
            shape,
            model_channels,
            tuple(model_channels * multiple for multiple in channel_mult),
            num_blocks,
            tuple(attn_resolutions),
            settings,
            encoder_type,
            decoder_type,
            rngs=rngs,
        )

    def __call__(
        self, x: Sample, t: Scalar, cond: Cond = None, *, augmentation: Array | None = None
    ) -> Sample:
        """Apply the network to one image.

        Args:
            x: the noisy image, (H, W, C).
            t: the noise level as the parametrization passes it.
            cond: a class label, or None.
            augmentation: vector of length `augment_dim` that describes the augmentation of a
                training image, or None. A network without `augment_dim` ignores it.

        Returns:
            The network's prediction, (H, W, C).

        Raises:
            ValueError: if x has another shape or the label is not one of this network.
        """
        h = self.map_noise(t)
        label = one_hot(cond, self.num_classes)
        if label is not None and self.map_label is not None:
            h = h + self.map_label(label * sqrt(label.size))
        if augmentation is not None and self.map_augment is not None:
            h = h + self.map_augment(augmentation)
        return self.trunk(x, nnx.silu(self.map_layer1(nnx.silu(self.map_layer0(h)))))
