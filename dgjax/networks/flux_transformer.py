"""The transformer of Flux, which diffusers calls `FluxTransformer2DModel`.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.dit_blocks import FeedForward, layer_norm
from dgjax.networks.dit_embeddings import Tokens
from dgjax.networks.inputs import check_shape
from dgjax.networks.joint_attention import (
    Attention,
    JointAttention,
    Modulation,
    Rotation,
    modulated,
)
from dgjax.networks.prompt_inputs import GUIDANCE, POOLED, PROMPT, PooledConditioning, check_prompt
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["FluxTransformer"]

PATCH = 2  # side of the patches that are packed into one token
GUIDANCE_SCALE = 1000.0


def rotation(tokens: int, height: int, width: int, axes: tuple[int, ...]) -> Rotation:
    """Return the places of all tokens; those of the text are at 0, with the first of the image.

    Args:
        tokens: tokens of the text.
        height: rows of tokens of the image.
        width: columns of tokens of the image.
        axes: how many of the numbers of a head turn with each of three coordinates: one that is
            always 0, row, and column.
    """
    rows, columns = np.divmod(np.arange(height * width), width)
    angles = []
    for size, place in zip(axes, (0 * rows, rows, columns), strict=True):
        rates = 1e4 ** -(np.arange(0, size, 2) / size)
        angles.append(np.outer(np.concatenate([np.zeros(tokens), place]), rates))
    angle = np.concatenate(angles, axis=1)
    return Rotation(
        jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(np.sin(angle), jnp.float32)
    )


class DoubleBlock(nnx.Module):
    """A joint block: attention over text and image, and an MLP for each.

    Args:
        heads: number of attention heads.
        size: length of a token.
        rngs: draws the initial weights.
    """

    def __init__(self, heads: int, size: int, *, rngs: nnx.Rngs):
        self.norm1 = Modulation(size, 6, rngs=rngs)
        self.norm1_context = Modulation(size, 6, rngs=rngs)
        self.attn = JointAttention(heads, size, True, rngs=rngs)
        self.normalize = layer_norm(size, rngs)
        self.ff = FeedForward(size, True, rngs=rngs)
        self.ff_context = FeedForward(size, True, rngs=rngs)

    def __call__(
        self, text: Tokens, image: Tokens, vector: Float[Array, " d"], places: Rotation
    ) -> tuple[Tokens, Tokens]:
        """Apply the block to text and image; `vector` is the conditioning."""
        of_text, of_image = self.norm1_context(vector), self.norm1(vector)
        outs = self.attn.both(
            modulated(self.normalize(text), of_text[0], of_text[1]),
            modulated(self.normalize(image), of_image[0], of_image[1]),
            places,
        )
        found = []
        for h, out, parts, ff in (
            (text, outs[0], of_text, self.ff_context),
            (image, outs[1], of_image, self.ff),
        ):
            h = h + parts[2] * out
            h = h + parts[5] * ff(modulated(self.normalize(h), parts[3], parts[4]))
            found.append(h)
        return found[0], found[1]


class SingleBlock(nnx.Module):
    """Attention and an MLP side by side, with the same weights for text and image.

    Args:
        heads: number of attention heads.
        size: length of a token.
        rngs: draws the initial weights.
    """

    def __init__(self, heads: int, size: int, *, rngs: nnx.Rngs):
        self.norm = Modulation(size, 3, rngs=rngs)
        self.normalize = layer_norm(size, rngs)
        self.attn = Attention(heads, size, True, projected=False, rngs=rngs)
        self.proj_mlp = nnx.Linear(size, 4 * size, rngs=rngs)
        self.proj_out = nnx.Linear(5 * size, size, rngs=rngs)

    def __call__(self, h: Tokens, vector: Float[Array, " d"], places: Rotation) -> Tokens:
        """Apply the block to the tokens of text and image; `vector` is the conditioning."""
        shift, scale, gate = self.norm(vector)
        inner = modulated(self.normalize(h), shift, scale)
        hidden = nnx.gelu(self.proj_mlp(inner), approximate=True)
        both = jnp.concatenate([self.attn(inner, places), hidden], axis=-1)
        return h + gate * self.proj_out(both)


class FluxTransformer(nnx.Module):
    """The transformer of Flux.1: `net(x, t, cond) -> out` on one latent (H, W, C).

    It packs patches of 2 x 2 pixels into tokens. In the first blocks text and image have weights of
    their own, as in Stable Diffusion 3, and share them in the others. Positions are rotary. A new
    network returns zeros.

    Args:
        shape: (H, W, C) of one latent, with even sides.
        num_layers: number of blocks with weights of their own for text and image.
        num_single_layers: number of blocks with the same weights for both.
        num_attention_heads: number of attention heads.
        attention_head_dim: length of one head; the length of a token is the product of the two.
        joint_attention_dim: length of the embedding of a text's token.
        pooled_projection_dim: length of the pooled text.
        guidance_embeds: whether the network takes the weight of guidance, as one distilled from
            guided samples does.
        axes_dims_rope: how many numbers of a head turn with each of three coordinates: one that is
            always 0, row, and column. They are even, and their sum is `attention_head_dim`.
        rngs: draws the initial weights.

    Raises:
        ValueError: if a side is odd, there are no blocks, or `axes_dims_rope` does not fit.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_layers: int = 19,
        num_single_layers: int = 38,
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 768,
        guidance_embeds: bool = False,
        axes_dims_rope: tuple[int, ...] = (16, 56, 56),
        *,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 3 or any(n % PATCH for n in shape[:2]):
            raise ValueError(
                f"this transformer takes latents (H, W, C) with even H and W, got {tuple(shape)}"
            )
        if min(num_layers, num_single_layers) < 0 or num_layers + num_single_layers < 1:
            raise ValueError(
                f"there must be a block, got num_layers {num_layers} and num_single_layers "
                f"{num_single_layers}"
            )
        axes = tuple(axes_dims_rope)
        if len(axes) != 3 or any(n % 2 for n in axes) or sum(axes) != attention_head_dim:
            raise ValueError(
                f"axes_dims_rope must be three even numbers whose sum is attention_head_dim "
                f"{attention_head_dim}, got {axes}"
            )
        size = num_attention_heads * attention_head_dim
        inputs = PATCH**2 * shape[2]
        self.shape, self.axes = tuple(shape), axes
        self.joint_attention_dim, self.pooled_projection_dim, self.guidance_embeds = (
            joint_attention_dim,
            pooled_projection_dim,
            guidance_embeds,
        )
        self.time_text_embed = PooledConditioning(
            pooled_projection_dim, size, guidance_embeds, rngs=rngs
        )
        self.context_embedder = nnx.Linear(joint_attention_dim, size, rngs=rngs)
        self.x_embedder = nnx.Linear(inputs, size, rngs=rngs)
        self.transformer_blocks = nnx.List(
            DoubleBlock(num_attention_heads, size, rngs=rngs) for _ in range(num_layers)
        )
        self.single_transformer_blocks = nnx.List(
            SingleBlock(num_attention_heads, size, rngs=rngs) for _ in range(num_single_layers)
        )
        self.norm_out = Modulation(size, 2, rngs=rngs)
        self.normalize = layer_norm(size, rngs)
        self.proj_out = nnx.Linear(size, inputs, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Sample, t: Scalar, cond: Cond = None) -> Sample:
        """Apply the network to one latent.

        Args:
            x: the noisy latent, (H, W, C).
            t: the time step, 1000 times the time of rectified flow. diffusers' class takes that
                time itself, and multiplies it.
            cond: a mapping with the names of diffusers' arguments: `encoder_hidden_states`,
                (tokens, `joint_attention_dim`), the embeddings of the prompt;
                `pooled_projections`, (`pooled_projection_dim`,), the pooled prompt; with
                `guidance_embeds` also `guidance`, a number, the weight of guidance.

        Returns:
            The network's prediction, (H, W, C).

        Raises:
            ValueError: if x has another shape, or a part of the condition is missing, left over or
                of another shape.
        """
        check_shape(x, self.shape)
        given = check_prompt(
            cond, self.joint_attention_dim, self.pooled_projection_dim, self.guidance_embeds
        )
        guidance = GUIDANCE_SCALE * given[GUIDANCE] if self.guidance_embeds else None
        vector = self.time_text_embed(t, jnp.asarray(given[POOLED], x.dtype), guidance)
        text = self.context_embedder(jnp.asarray(given[PROMPT], x.dtype)[None])
        height, width, channels = self.shape
        rows, columns = height // PATCH, width // PATCH
        # In a token the channel comes before row and column.
        packed = x.reshape(rows, PATCH, columns, PATCH, channels).transpose(0, 2, 4, 1, 3)
        image = self.x_embedder(packed.reshape(1, rows * columns, -1))
        tokens = text.shape[1]
        places = rotation(tokens, rows, columns, self.axes)
        for block in self.transformer_blocks:
            text, image = block(text, image, vector, places)
        h = jnp.concatenate([text, image], axis=1)
        for single in self.single_transformer_blocks:
            h = single(h, vector, places)
        scale, shift = self.norm_out(vector)
        out = self.proj_out(modulated(self.normalize(h[:, tokens:]), shift, scale))
        out = out.reshape(rows, columns, channels, PATCH, PATCH).transpose(0, 3, 1, 4, 2)
        return out.reshape(self.shape).astype(x.dtype)
