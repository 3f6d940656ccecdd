"""DhariwalUNet of EDM (arXiv 2206.00364): the network of ADM (arXiv 2105.05233)."""

from flax import nnx
from jaxtyping import Array

from dgjax.networks.edm_blocks import EDMSettings, one_hot, optional_linear
from dgjax.networks.edm_trunk import Trunk
from dgjax.networks.time_features import Positional
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["DhariwalUNet"]


class DhariwalUNet(nnx.Module):
    """ADM as in EDM: `net(x, t, cond) -> out` on one image (H, W, C).

    The embedding scales and shifts in every block, and attention has heads of 64 channels. A new
    network returns zeros. The parametrization `preconditioned` passes log(sigma)/4 as t.

    Args:
        shape: (H, W, C) of one image.
        num_classes: number of labels, or None for a network without labels. The label
            `num_classes`, like `cond` None, stands for no label.
        augment_dim: length of the vector that describes an augmentation, or None.
        model_channels: base number of channels.
        channel_mult: channels of each level, as multiples of `model_channels`.
        channel_mult_emb: length of the embedding, as a multiple of `model_channels`.
        num_blocks: residual blocks of a level on the way down; one more on the way up.
        attn_resolutions: heights of an image at which blocks have attention.
        rngs: draws the initial weights.

    Raises:
        ValueError: if sizes do not fit each other.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int | None = None,
        augment_dim: int | None = None,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (32, 16, 8),
        *,
        rngs: nnx.Rngs,
    ):
        self.shape, self.num_classes = tuple(shape), num_classes
        size = model_channels * channel_mult_emb
        settings = EDMSettings(
            embedding=size,
            eps=1e-5,
            scale_shift=True,
            head_channels=64,
            scale=1.0,
            shortcut=False,
            attend_all=True,
            kernel=(1, 1),
        )
        self.map_noise = Positional(model_channels, shift=0, cosines_first=True)
        self.map_augment = optional_linear(augment_dim, model_channels, rngs)
        self.map_layer0 = nnx.Linear(model_channels, size, rngs=rngs)
        self.map_layer1 = nnx.Linear(size, size, rngs=rngs)
        self.map_label = optional_linear(num_classes, size, rngs)
        widths = tuple(model_channels * multiple for multiple in channel_mult)
        self.trunk = Trunk(
            shape,
            widths[0] if widths else model_channels,
            widths,
            num_blocks,
            tuple(attn_resolutions),
            settings,
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
        if augmentation is not None and self.map_augment is not None:
            h = h + self.map_augment(augmentation)
        h = self.map_layer1(nnx.silu(self.map_layer0(h)))
        label = one_hot(cond, self.num_classes)
        if label is not None and self.map_label is not None:
            h = h + self.map_label(label)
        return self.trunk(x, nnx.silu(h))
