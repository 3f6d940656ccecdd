"""The U-Net that diffusers calls `UNet2DModel`: DDPM, ADM and NCSN++ among others.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dgjax.networks.inputs import check_label, check_shape
from dgjax.networks.time_features import Fourier, Positional, TimestepEmbedding
from dgjax.networks.unet2d_blocks import MidBlock
from dgjax.networks.unet2d_k_blocks import KLevel, are_k_blocks, make_k_blocks
from dgjax.networks.unet2d_kinds import DOWN, UP, BlockKind, default_groups
from dgjax.networks.unet2d_levels import make_down_blocks, make_up_blocks
from dgjax.networks.unet2d_parts import ACTIVATIONS, BlockSettings, conv, group_norm
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["UNet2D"]

RESAMPLING = ("conv", "resnet", "pool")
EMBEDDINGS = ("positional", "fourier")
CLASSES = ("table", "timestep", "identity")


class UNet2D(nnx.Module):
    """The U-Net of diffusers: `net(x, t, cond) -> out` on one image (H, W, C).

    Its block types make it the network of DDPM (arXiv 2006.11239), ADM (arXiv 2105.05233), NCSN++
    (arXiv 2011.13456) and variants of them.

    Args:
        shape: (H, W, C) of one image.
        block_out_channels: channels of each level, from full resolution down.
        down_block_types: diffusers' name of the block of each level on the way down: a key of
            `dgjax.networks.unet2d_kinds.DOWN`, or of `dgjax.networks.unet2d_k_blocks.K_DOWN`.
        up_block_types: the same on the way up, from the lowest level: a key of `UP` or `K_UP`
            there. K blocks go with K blocks only, and take multiples of 32 channels.
        layers_per_block: residual blocks of a level on the way down; one more on the way up, except
            in K blocks.
        outputs: channels of the last layer: C, or 2 C for a network trained to predict a variance
            too. That half serves ancestral samplers only, and is dropped.
        center_input_sample: whether pixels in [0, 1] are moved to [-1, 1] first.
        time_embedding: "positional" for t a time step, or "fourier" for t a noise level. With
            "fourier" the output is divided by t.
        time_embedding_dim: length of the vector that carries time and class; unless given, four
            times the channels of the first level.
        time_features: sinusoids of the time; unless given, as many as channels of the first level.
        freq_shift: `shift` of `dgjax.networks.time_features.Positional`.
        flip_sin_to_cos: whether cosines come before sines.
        middle: whether there is a middle level.
        mid_block_scale_factor: residual sums of the middle level are divided by this.
        add_attention: whether the middle level has attention.
        downsample_padding: zeros on each side before a convolution of stride 2.
        downsample_type: "conv", "resnet" or "pool" (means without weights): the layer that halves
            the resolution after a block with attention.
        upsample_type: the same for the layer that doubles it ("pool" repeats pixels).
        act_fn: activation: "silu", "swish", "mish", "gelu" or "relu".
        attention_head_dim: channels of an attention head, or None for one head.
        attention_heads: number of attention heads, in place of `attention_head_dim`; or None.
        norm_num_groups: groups of the normalizations, or None to choose them by the channels.
        attn_norm_num_groups: groups of the normalization of the middle attention, or None for those
            of its residual blocks.
        norm_eps: added to the variance in normalizations.
        scale_shift: whether the embedding scales and shifts in residual blocks, or only shifts.
        num_classes: number of labels for a network that looks up a vector per label, or None.
        class_embedding: for a network without `num_classes`: "timestep" if `cond` is a number that
            is embedded like the time, "identity" if it is a vector of length `time_embedding_dim`,
            None if the network takes no condition.
        no_class: whether there is one more label, `num_classes`, for no class. `cond` None stands
            for it, too.
        rngs: draws the initial weights.

    Raises:
        ValueError: if a name is unknown, sizes do not fit each other, or H or W is not a multiple
            of 2^(levels - 1).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        block_out_channels: tuple[int, ...],
        down_block_types: tuple[str, ...],
        up_block_types: tuple[str, ...],
        layers_per_block: int = 2,
        outputs: int | None = None,
        center_input_sample: bool = False,
        time_embedding: str = "positional",
        time_embedding_dim: int | None = None,
        time_features: int | None = None,
        freq_shift: float = 0.0,
        flip_sin_to_cos: bool = True,
        middle: bool = True,
        mid_block_scale_factor: float = 1.0,
        add_attention: bool = True,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        attention_heads: int | None = None,
        norm_num_groups: int | None = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        scale_shift: bool = False,
        num_classes: int | None = None,
        class_embedding: str | None = None,
        no_class: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        widths, levels = tuple(block_out_channels), len(block_out_channels)
        if not levels == len(down_block_types) == len(up_block_types) or not levels:
            raise ValueError(
                f"a U-Net of {levels} levels takes as many down_block_types and up_block_types, "
                f"got {len(down_block_types)} and {len(up_block_types)}"
            )
        step = 2 ** (levels - 1)
        if len(shape) != 3 or shape[0] % step or shape[1] % step:
            raise ValueError(
                f"this U-Net takes images (H, W, C) with H and W multiples of {step}, got {shape}"
            )
        k_blocks = are_k_blocks(down_block_types, up_block_types)
        down: list[BlockKind] = []
        up: list[BlockKind] = []
        if not k_blocks:
            down = [
                _block_kind("down_block_types", DOWN, name, downsample_type)
                for name in down_block_types
            ]
            up = [_block_kind("up_block_types", UP, name, upsample_type) for name in up_block_types]
        if any(kind.auxiliary for kind in (*down, *up)) and shape[2] != 3:
            raise ValueError(f"Skip blocks take images of 3 channels, got {shape[2]}")
        _check_name("act_fn", act_fn, ACTIVATIONS)
        _check_name("time_embedding", time_embedding, EMBEDDINGS)
        if num_classes is not None:
            class_embedding = "table"
        elif no_class:
            raise ValueError("no_class needs num_classes")
        _check_name("class_embedding", class_embedding, (None, *CLASSES))
        self.shape, self.outputs = tuple(shape), shape[2] if outputs is None else outputs
        if self.outputs not in (shape[2], 2 * shape[2]):
            raise ValueError(
                f"out_channels must be {shape[2]}, or {2 * shape[2]} with a learnt variance, got "
                f"{self.outputs}"
            )
        size = 4 * widths[0] if time_embedding_dim is None else time_embedding_dim
        settings = BlockSettings(
            embedding=size,
            groups=norm_num_groups,
            eps=norm_eps,
            scale_shift=scale_shift,
            head_channels=attention_head_dim,
            activation=act_fn,
            padding=downsample_padding,
            heads=attention_heads,
        )
        self.center, self.divide_by_t = center_input_sample, time_embedding == "fourier"
        waves = widths[0] if time_features is None else time_features
        features = 2 * waves if self.divide_by_t else waves
        self.time_proj = (
            Fourier(waves, rngs=rngs)
            if self.divide_by_t
            else Positional(waves, freq_shift, flip_sin_to_cos)
        )
        self.time_embedding = TimestepEmbedding(features, size, rngs=rngs)
        self.classes, self.null = class_embedding, num_classes if no_class else None
        embed: Any = None
        if num_classes is not None:
            embed = nnx.Embed(num_classes + no_class, size, rngs=rngs)
        elif class_embedding == "timestep":
            embed = TimestepEmbedding(features, size, rngs=rngs)
        self.class_embedding = embed

        self.conv_in = conv(shape[2], widths[0], rngs)
        depths = (layers_per_block,) * levels
        if k_blocks:
            heads = [attention_head_dim or width for width in widths]
            if attention_heads is not None:
                heads = [width // attention_heads for width in widths]
            self.down_blocks, self.up_blocks = make_k_blocks(
                list(map(KLevel, down_block_types, widths, depths, heads)),
                list(map(KLevel, up_block_types, widths[::-1], depths, heads[::-1])),
                settings,
                rngs,
            )
        else:
            self.down_blocks = make_down_blocks(down, widths, depths, settings, rngs)
        mid = (settings, add_attention, attn_norm_num_groups, mid_block_scale_factor)
        self.mid_block = MidBlock(widths[-1], *mid, rngs=rngs) if middle else None
        if not k_blocks:
            self.up_blocks = make_up_blocks(up, widths, depths, settings, rngs)
        groups = default_groups(widths[0]) if norm_num_groups is None else norm_num_groups
        self.conv_norm_out = group_norm(widths[0], groups, norm_eps, rngs)
        self.conv_out = conv(widths[0], self.outputs, rngs)

    def __call__(self, x: Sample, t: Scalar, cond: Cond = None) -> Sample:
        """Apply the network to one image.

        Args:
            x: the noisy image, (H, W, C).
            t: the time step, or the noise level with `time_embedding="fourier"`.
            cond: the class label (the number or vector of a `class_embedding`); None for a network
                that takes no condition.

        Returns:
            The network's prediction, (H, W, C).

        Raises:
            ValueError: if x has another shape, or a condition is missing, out of range or given to
                a network that takes none.
        """
        check_shape(x, self.shape)
        embedding = self.time_embedding(self.time_proj(t)) + self._condition(cond)
        image = (2 * x - 1 if self.center else x)[None]
        h, auxiliary = self.conv_in(image), image
        skips = [h]
        for down in self.down_blocks:
            h, auxiliary, more = down(h, auxiliary, embedding)
            skips += more
        if self.mid_block is not None:
            h = self.mid_block(h, embedding)
        output = None
        for up in self.up_blocks:
            h, output = up(h, output, skips, embedding)
        h = self.conv_out(nnx.silu(self.conv_norm_out(h)))
        if output is not None:
            h = h + output
        if self.divide_by_t:
            h = h / t
        return h[0, ..., : self.shape[2]].astype(x.dtype)

    def _condition(self, cond: Cond) -> Array | float:
        if self.classes is None:
            if cond is None:
                return 0.0
            raise ValueError("this network takes no condition: drop cond")
        cond = self.null if cond is None else cond
        if cond is None:
            raise ValueError(
                "this network was trained with a class for every image: pass a class label as cond"
            )
        if self.classes == "identity":
            return cond
        if self.classes == "timestep":
            return self.class_embedding(self.time_proj(jnp.asarray(cond, float)))
        rows = self.class_embedding.num_embeddings
        check_label(cond, (rows if self.null is None else self.null) - 1, self.null)
        # A batch of one, because flax's table of a single vector takes no scalar.
        return self.class_embedding(jnp.asarray(cond)[None])[0]


def _block_kind(where: str, kinds: dict[str, BlockKind], name: str, resample: str) -> BlockKind:
    name = name.removeprefix("UNetRes")  # as in the oldest configs
    _check_name(where, name, kinds)
    _check_name("downsample_type and upsample_type", resample, RESAMPLING)
    return replace(kinds[name], resample=kinds[name].resample or resample)


def _check_name(what: str, name: str | None, names: Collection[str | None]) -> None:
    if name not in names:
        raise ValueError(
            f"{what} {name!r} is unknown: expected one of {', '.join(map(str, names))}"
        )
