"""ADM of Dhariwal & Nichol 2021, as in Karras et al. 2022 (EDM), where it is DhariwalUNet."""

from flax import nnx
from jaxtyping import Array

from dgjax.networks.edm_blocks import Style, one_hot
from dgjax.networks.edm_trunk import Trunk
from dgjax.networks.unet2d import Positional
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["DhariwalUNet"]


class DhariwalUNet(nnx.Module):
    """`net(x, t, cond) -> out` on ONE image (H, W, C); `out` has its shape.

    With `parametrization.preconditioned` t is log(sigma)/4. Arguments are those of `SongUNet`.
    Attention is in heads of 64 channels.

    Raises:
        ValueError: if sizes do not fit each other; when called, if x has another shape or a label
            is given that the network cannot take.
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
        style = Style(
            embedding=size,
            eps=1e-5,
            adaptive=True,
            head=64,
            scale=1.0,
            projects=False,
            everywhere=True,
            row=(1, 1),
        )
        self.map_noise = Positional(model_channels, shift=0, cosines_first=True)
        self.map_augment = (
            None
            if augment_dim is None
            else nnx.Linear(augment_dim, model_channels, use_bias=False, rngs=rngs)
        )
        self.map_layer0 = nnx.Linear(model_channels, size, rngs=rngs)
        self.map_layer1 = nnx.Linear(size, size, rngs=rngs)
        self.map_label = (
            None
            if num_classes is None
            else nnx.Linear(num_classes, size, use_bias=False, rngs=rngs)
        )
        widths = tuple(model_channels * multiple for multiple in channel_mult)
        self.trunk = Trunk(
            shape,
            widths[0] if widths else model_channels,
            widths,
            num_blocks,
            tuple(attn_resolutions),
            style,
            rngs=rngs,
        )

    def __call__(
        self, x: Sample, t: Scalar, cond: Cond = None, *, augmentation: Array | None = None
    ) -> Sample:
        if x.shape != self.shape:
            raise ValueError(f"x has shape {x.shape} and this network takes {self.shape}")
        h = self.map_noise(t)
        if augmentation is not None and self.map_augment is not None:
            h = h + self.map_augment(augmentation)
        h = self.map_layer1(nnx.silu(self.map_layer0(h)))
        label = one_hot(cond, self.num_classes)
        if label is not None and self.map_label is not None:
            h = h + self.map_label(label)
        return self.trunk(x[None], nnx.silu(h))[0].astype(x.dtype)
