"""The U-Net of Stable Diffusion, which diffusers calls `UNet2DConditionModel`.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dgjax.networks.inputs import check_shape
from dgjax.networks.time_features import Positional, TimestepEmbedding
from dgjax.networks.unet2d_blocks import MidBlock
from dgjax.networks.unet2d_k_blocks import K_DOWN, K_UP, KLevel, are_k_blocks, make_k_blocks
from dgjax.networks.unet2d_kinds import BlockKind
from dgjax.networks.unet2d_levels import make_down_blocks, make_up_blocks
from dgjax.networks.unet2d_parts import ACTIVATIONS, BlockSettings, conv, group_norm
from dgjax.networks.unet2d_transformer import Context, TransformerSettings
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["UNet2DCondition"]

# By diffusers' names.
DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
MIDDLE = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)
PROMPT, MASK, ADDED = "encoder_hidden_states", "encoder_attention_mask", "added_cond_kwargs"
TEXT, SIZES = "text_embeds", "time_ids"


class UNet2DCondition(nnx.Module):
    """The U-Net of Stable Diffusion 1, 2 and XL: `net(x, t, cond) -> out` on one latent (H, W, C).

    Its residual blocks are those of `UNet2D`. Transformers let the pixels attend to the embeddings
    of a text (arXiv 2112.10752); XL adds a pooled text and image sizes to the embedding of the
    time (arXiv 2307.01952).

    Args:
        shape: (H, W, C) of one latent.
        block_out_channels: channels of each level, from full resolution down.
        down_block_types: diffusers' name of the block of each level on the way down:
            "CrossAttnDownBlock2D" with transformers or "DownBlock2D" without, or a key of
            `dgjax.networks.unet2d_k_blocks.K_DOWN`.
        up_block_types: "CrossAttnUpBlock2D" or "UpBlock2D" of each level on the way up, from the
            lowest, or keys of `K_UP` there. K blocks go with K blocks only, and take multiples of
            32 channels.
        cross_attention_dim: length of the embedding of a token.
        heads: number of attention heads of each level, from full resolution down. For K blocks the
            channels of a head instead, in the order of the blocks on the way up, too.
        layers_per_block: residual blocks of each level on the way down; one more on the way up,
            except in K blocks.
        transformer_layers: transformer blocks of each transformer, by levels from full resolution
            down.
        up_transformer_layers: the same on the way up, from the lowest level; None for the same.
        linear_projection: whether transformers project the channels by linear layers, or by 1x1
            convolutions.
        mid_block_type: "UNetMidBlock2DCrossAttn", "UNetMidBlock2D" (one residual block) or None.
        mid_block_scale_factor: residual sums of the middle level are divided by this.
        center_input_sample: whether x is replaced by 2 x - 1 first.
        freq_shift: `shift` of `dgjax.networks.time_features.Positional`.
        flip_sin_to_cos: whether cosines come before sines.
        time_embedding_dim: length of the vector that carries the time; unless given, four times
            the channels of the first level.
        downsample_padding: zeros on each side before a convolution of stride 2.
        act_fn: activation: "silu", "swish", "mish", "gelu" or "relu".
        norm_num_groups: groups of the normalizations; None for K blocks without a normalization
            before the last convolution.
        norm_eps: added to the variance in normalizations of residual blocks.
        scale_shift: whether the embedding scales and shifts in residual blocks, or only shifts.
        added_size: for XL, number of sinusoids of each of its image sizes; None for a network that
            takes the embeddings of the tokens only.
        added_inputs: for XL, length of the pooled text and the sinusoids together.
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
        cross_attention_dim: int,
        heads: tuple[int, ...],
        layers_per_block: tuple[int, ...],
        transformer_layers: tuple[int, ...],
        up_transformer_layers: tuple[int, ...] | None = None,
        linear_projection: bool = False,
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        mid_block_scale_factor: float = 1.0,
        center_input_sample: bool = False,
        freq_shift: float = 0.0,
        flip_sin_to_cos: bool = True,
        time_embedding_dim: int | None = None,
        downsample_padding: int = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        scale_shift: bool = False,
        added_size: int | None = None,
        added_inputs: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        widths, levels = tuple(block_out_channels), len(block_out_channels)
        up_layers = up_transformer_layers or tuple(transformer_layers)[::-1]
        by_level = {
            "down_block_types": down_block_types,
            "up_block_types": up_block_types,
            "heads": heads,
            "layers_per_block": layers_per_block,
            "transformer_layers": transformer_layers,
            "up_transformer_layers": up_layers,
        }
        for name, values in by_level.items():
            if len(values) != levels or not levels:
                raise ValueError(
                    f"a U-Net of {levels} levels takes as many {name}, got {len(values)}"
                )
        step = 2 ** (levels - 1)
        if len(shape) != 3 or shape[0] % step or shape[1] % step:
            raise ValueError(
                f"this U-Net takes latents (H, W, C) with H and W multiples of {step}, got {shape}"
            )
        for name, names, known in (
            ("down_block_types", down_block_types, DOWN | K_DOWN),
            ("up_block_types", up_block_types, UP | K_UP),
            ("mid_block_type", (mid_block_type,), MIDDLE),
            ("act_fn", (act_fn,), ACTIVATIONS),
        ):
            if unknown := [value for value in names if value not in known]:
                raise ValueError(
                    f"{name} {unknown[0]!r} is unknown: expected one of "
                    f"{', '.join(map(str, known))}"
                )
        k_blocks, depths = are_k_blocks(down_block_types, up_block_types), tuple(layers_per_block)
        if norm_num_groups is None and not k_blocks:
            raise ValueError("norm_num_groups None is for K blocks only")
        if (added_size is None) != (added_inputs is None):
            raise ValueError("added_size and added_inputs are given together")
        self.shape, self.context, self.center = (
            tuple(shape),
            cross_attention_dim,
            center_input_sample,
        )
        size = 4 * widths[0] if time_embedding_dim is None else time_embedding_dim
        settings = BlockSettings(
            embedding=size,
            groups=norm_num_groups,
            eps=norm_eps,
            scale_shift=scale_shift,
            head_channels=None,
            activation=act_fn,
            padding=downsample_padding,
        )
        self.time_proj = Positional(widths[0], freq_shift, flip_sin_to_cos)
        activation = ACTIVATIONS[act_fn]
        self.time_embedding = TimestepEmbedding(widths[0], size, activation, rngs=rngs)
        time_proj: Any = None
        embed: Any = None
        if added_size is not None and added_inputs is not None:
            time_proj = Positional(added_size, freq_shift, flip_sin_to_cos)
            embed = TimestepEmbedding(added_inputs, size, rngs=rngs)
        self.added_inputs, self.add_time_proj, self.add_embedding = added_inputs, time_proj, embed

        def transformer(level: int, layers: int) -> TransformerSettings:
            return TransformerSettings(heads[level], layers, cross_attention_dim, linear_projection)

        def kind(name: str, level: int, layers: int) -> BlockKind:
            if not (DOWN | UP)[name]:
                return BlockKind()
            return BlockKind(attention=True, transformer=transformer(level, layers))

        self.conv_in = conv(shape[2], widths[0], rngs)
        if k_blocks:
            context = len(widths) * (cross_attention_dim,)
            # diffusers takes heads on the way up in this order, too, and with the meaning of sizes.
            self.down_blocks, self.up_blocks = make_k_blocks(
                list(map(KLevel, down_block_types, widths, layers_per_block, heads, context)),
                list(map(KLevel, up_block_types, widths[::-1], depths[::-1], heads, context)),
                settings,
                rngs,
            )
        else:
            kinds = map(kind, down_block_types, range(levels), transformer_layers)
            self.down_blocks = make_down_blocks(list(kinds), widths, depths, settings, rngs)
        attends = mid_block_type == "UNetMidBlock2DCrossAttn"
        middle = transformer(-1, transformer_layers[-1]) if attends else None
        mid = (settings, attends, None, mid_block_scale_factor, middle, not attends)
        self.mid_block = None if mid_block_type is None else MidBlock(widths[-1], *mid, rngs=rngs)
        if not k_blocks:
            kinds = map(kind, up_block_types, reversed(range(levels)), up_layers)
            self.up_blocks = make_up_blocks(list(kinds), widths, depths, settings, rngs)
        self.conv_norm_out = (
            None
            if norm_num_groups is None
            else group_norm(widths[0], norm_num_groups, norm_eps, rngs)
        )
        self.activation = activation
        self.conv_out = conv(widths[0], shape[2], rngs)

    def __call__(self, x: Sample, t: Scalar, cond: Cond = None) -> Sample:
        """Apply the network to one latent.

        Args:
            x: the noisy latent, (H, W, C).
            t: the time step.
            cond: a mapping with the names of diffusers' arguments, so that the same condition
                serves `dgjax.torch_network`: `encoder_hidden_states`, (tokens,
                `cross_attention_dim`), the embeddings of the prompt; optionally
                `encoder_attention_mask`, (tokens,), true or 1 for tokens that are attended to; for
                XL `added_cond_kwargs` with `text_embeds`, the pooled prompt, and `time_ids`, the
                sizes in pixels. An array stands for `encoder_hidden_states` alone.

        Returns:
            The network's prediction, (H, W, C).

        Raises:
            ValueError: if x has another shape, or a part of the condition is missing, left over or
                of another shape.
        """
        check_shape(x, self.shape)
        given = self._condition(cond)
        mask = given.get(MASK)
        context = Context(
            jnp.asarray(given[PROMPT], x.dtype)[None],
            None if mask is None else jnp.asarray(mask) > 0,
        )
        embedding = self.time_embedding(self.time_proj(t)) + self._added(given.get(ADDED), x.dtype)
        image = (2 * x - 1 if self.center else x)[None]
        h = self.conv_in(image)
        skips = [h]
        for down in self.down_blocks:
            h, _, more = down(h, image, embedding, context)
            skips += more
        if self.mid_block is not None:
            h = self.mid_block(h, embedding, context)
        for up in self.up_blocks:
            h, _ = up(h, None, skips, embedding, context)
        if self.conv_norm_out is not None:
            h = self.activation(self.conv_norm_out(h))
        return self.conv_out(h)[0].astype(x.dtype)

    def _condition(self, cond: Cond) -> Mapping[str, Any]:
        """Return the condition as a mapping, after a check of its names and shapes."""
        if cond is None:
            raise ValueError(
                f"this network was trained with a prompt for every image: pass cond with {PROMPT}, "
                "the embeddings of a prompt (of the empty one for no text)"
            )
        given = cond if isinstance(cond, Mapping) else {PROMPT: cond}
        known = {PROMPT, MASK, *([ADDED] if self.added_inputs else [])}
        if unknown := sorted(given.keys() - known):
            raise ValueError(f"cond has {unknown[0]!r}, which this network does not take")
        if PROMPT not in given or (self.added_inputs and ADDED not in given):
            missing = PROMPT if PROMPT not in given else ADDED
            raise ValueError(f"cond has no {missing!r}, which this network needs")
        shape = jnp.shape(given[PROMPT])
        if len(shape) != 2 or shape[1] != self.context:
            raise ValueError(
                f"{PROMPT} has shape {shape}, and this network takes (tokens, {self.context})"
            )
        mask = given.get(MASK)
        if mask is not None and jnp.shape(mask) != shape[:1]:
            raise ValueError(f"{MASK} has shape {jnp.shape(mask)} for {shape[0]} tokens")
        return given

    def _added(self, added: Any, dtype: Any) -> Array | float:
        """Return the embedding of the pooled text and the sizes."""
        if self.add_embedding is None:
            return 0.0
        if not isinstance(added, Mapping) or added.keys() != {TEXT, SIZES}:
            raise ValueError(f"{ADDED} must be a mapping of {TEXT} and {SIZES}")
        sizes = jnp.asarray(added[SIZES], dtype).reshape(-1)
        features = jax.vmap(self.add_time_proj)(sizes).reshape(-1)
        text = jnp.asarray(added[TEXT], dtype)
        if text.ndim != 1 or text.size + features.size != self.added_inputs:
            raise ValueError(
                f"{TEXT} has shape {text.shape} and there are {sizes.size} {SIZES}; together they "
                f"must give {self.added_inputs} numbers, {self.add_time_proj.size} for each size"
            )
        return self.add_embedding(jnp.concatenate([text, features]))
