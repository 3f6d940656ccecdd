"""The U-Net that diffusers calls `UNet2DModel`: DDPM, ADM and NCSN++ among others.

Ho et al. 2020 (DDPM), Dhariwal & Nichol 2021 (ADM), Song et al. 2021 (NCSN++). Its attributes have
the names that diffusers gives them, so that its weights find their places.
"""

from dataclasses import replace
from math import log
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dgjax.networks.inputs import check_label
from dgjax.networks.unet2d_blocks import DOWN, UP, DownBlock, Kind, MidBlock, UpBlock, few
from dgjax.networks.unet2d_parts import ACTIVATIONS, Style, conv, norm
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["UNet2D"]

RESAMPLING = ("conv", "resnet")
EMBEDDINGS = ("positional", "fourier")
CLASSES = ("table", "timestep", "identity")


class TimestepEmbedding(nnx.Module):
    """Two layers on the features of a time."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(inputs, outputs, rngs=rngs)
        self.linear_2 = nnx.Linear(outputs, outputs, rngs=rngs)

    def __call__(self, features: Array) -> Array:
        return self.linear_2(nnx.silu(self.linear_1(features)))


class Positional(nnx.Module):
    """Cosines and sines of the time, at periods from 2 pi to 10,000 times that."""

    def __init__(self, size: int, shift: float, cosines_first: bool):
        self.size, self.shift, self.cosines_first = size, shift, cosines_first

    def __call__(self, t: Scalar) -> Array:
        half = self.size // 2
        angles = t * jnp.exp(-log(10_000) / (half - self.shift) * jnp.arange(half))
        waves = [jnp.sin(angles), jnp.cos(angles)]
        return jnp.concatenate(waves[::-1] if self.cosines_first else waves)


class Fourier(nnx.Module):
    """Sines and cosines of the logarithm of the noise level, at random frequencies."""

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(16 * rngs.params.normal((size,)))

    def __call__(self, t: Scalar) -> Array:
        angles = 2 * jnp.pi * jnp.log(t) * self.weight[...]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class UNet2D(nnx.Module):
    """`net(x, t, cond) -> out` on ONE image (H, W, C); `out` has its shape.

    `t` is the time step, whole numbers in training, or with `time_embedding="fourier"` the noise
    level. Arguments are called as in diffusers' `UNet2DModel`, where they are explained, but for
    those below.

    Args:
        shape: (H, W, C) of one image.
        outputs: channels of the last layer: C, or 2 C where the second half tells a learnt variance
            of the sampler's, which is not read.
        time_embedding: "positional" or "fourier".
        time_embedding_dim: length of the vector that carries time and class; four times the first
            channels unless told.
        num_classes: number of labels that `cond` can be, or None.
        class_embedding: what is made of `cond`: "table" looks a label up, "timestep" embeds a
            number like the time, "identity" adds a vector of length `time_embedding_dim`. With
            `num_classes` None it is "timestep", "identity" or no condition at all, None.
        rngs: makes the initial weights, and is not kept.

    Raises:
        ValueError: if a name is unknown, sizes do not fit each other, or H or W is no multiple of
            2^(levels - 1); when called, if x has another shape, or a condition is missing, out of
            range or not asked for.
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
        norm_num_groups: int | None = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        scale_shift: bool = False,
        num_classes: int | None = None,
        class_embedding: str | None = None,
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
        down = [_kind("down_block_types", DOWN, name, downsample_type) for name in down_block_types]
        up = [_kind("up_block_types", UP, name, upsample_type) for name in up_block_types]
        if any(kind.thin for kind in (*down, *up)) and shape[2] != 3:
            raise ValueError(f"Skip blocks draw images of 3 channels, not of {shape[2]}")
        _check("act_fn", act_fn, ACTIVATIONS)
        _check("time_embedding", time_embedding, EMBEDDINGS)
        if num_classes is not None:
            class_embedding = "table"
        _check("class_embedding", class_embedding, (None, *CLASSES))
        self.shape, self.outputs = tuple(shape), shape[2] if outputs is None else outputs
        if self.outputs not in (shape[2], 2 * shape[2]):
            raise ValueError(
                f"out_channels must be {shape[2]}, or {2 * shape[2]} with a learnt variance, got "
                f"{self.outputs}"
            )
        size = 4 * widths[0] if time_embedding_dim is None else time_embedding_dim
        style = Style(
            embedding=size,
            groups=norm_num_groups,
            eps=norm_eps,
            scale_shift=scale_shift,
            head=attention_head_dim,
            activation=act_fn,
            padding=downsample_padding,
        )
        self.center, self.divides = center_input_sample, time_embedding == "fourier"
        features = 2 * widths[0] if self.divides else widths[0]
        self.time_proj = (
            Fourier(widths[0], rngs=rngs)
            if self.divides
            else Positional(widths[0], freq_shift, flip_sin_to_cos)
        )
        self.time_embedding = TimestepEmbedding(features, size, rngs=rngs)
        self.classes = class_embedding
        embed: Any = None
        if num_classes is not None:
            embed = nnx.Embed(num_classes, size, rngs=rngs)
        elif class_embedding == "timestep":
            embed = TimestepEmbedding(features, size, rngs=rngs)
        self.class_embedding = embed

        self.conv_in = conv(shape[2], widths[0], rngs)
        inputs, kept = widths[0], [widths[0]]
        self.down_blocks: nnx.List = nnx.List()
        for i, (kind, width) in enumerate(zip(down, widths, strict=True)):
            last = i == levels - 1
            self.down_blocks.append(
                DownBlock(kind, inputs, width, layers_per_block, last, style, rngs=rngs)
            )
            kept += (layers_per_block + (not last)) * [width]
            inputs = width
        mid = (style, add_attention, attn_norm_num_groups, mid_block_scale_factor)
        self.mid_block = MidBlock(widths[-1], *mid, rngs=rngs) if middle else None
        self.up_blocks: nnx.List = nnx.List()
        for i, (kind, width) in enumerate(zip(up, widths[::-1], strict=True)):
            merged = [kept.pop() for _ in range(layers_per_block + 1)]
            last = i == levels - 1
            self.up_blocks.append(UpBlock(kind, inputs, width, merged, last, style, rngs=rngs))
            inputs = width
        groups = few(widths[0]) if norm_num_groups is None else norm_num_groups
        self.conv_norm_out = norm(widths[0], groups, norm_eps, rngs)
        self.conv_out = conv(widths[0], self.outputs, rngs)

    def __call__(self, x: Sample, t: Scalar, cond: Cond = None) -> Sample:
        if x.shape != self.shape:
            raise ValueError(f"x has shape {x.shape} and this network takes {self.shape}")
        embedding = self.time_embedding(self.time_proj(t)) + self._condition(cond)
        image = (2 * x - 1 if self.center else x)[None]
        h, thin = self.conv_in(image), image
        kept = [h]
        for down in self.down_blocks:
            h, thin, more = down(h, thin, embedding)
            kept += more
        if self.mid_block is not None:
            h = self.mid_block(h, embedding)
        drawn = None
        for up in self.up_blocks:
            h, drawn = up(h, drawn, kept, embedding)
        h = self.conv_out(nnx.silu(self.conv_norm_out(h)))
        if drawn is not None:
            h = h + drawn
        if self.divides:
            h = h / t
        return h[0, ..., : self.shape[2]].astype(x.dtype)

    def _condition(self, cond: Cond) -> Array | float:
        if self.classes is None:
            if cond is None:
                return 0.0
            raise ValueError("this network takes no condition: drop cond")
        if cond is None:
            raise ValueError(
                "this network was trained with a class for every image: give cond (--class)"
            )
        if self.classes == "identity":
            return cond
        if self.classes == "timestep":
            return self.class_embedding(self.time_proj(jnp.asarray(cond, float)))
        check_label(cond, self.class_embedding.num_embeddings - 1)
        # As a batch of one, because flax's table of a single vector takes no scalar.
        return self.class_embedding(jnp.asarray(cond)[None])[0]


def _kind(where: str, kinds: dict[str, Kind], name: str, resample: str) -> Kind:
    name = name.removeprefix("UNetRes")
    _check(where, name, kinds)
    _check("downsample_type and upsample_type", resample, RESAMPLING)
    return replace(kinds[name], resample=kinds[name].resample or resample)


def _check(what: str, name: str | None, names) -> None:
    if name not in names:
        raise ValueError(f"{what} {name!r} is unknown: there is {', '.join(map(str, names))}")
