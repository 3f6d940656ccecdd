"""The transformer of Stable Diffusion 3, which diffusers calls `SD3Transformer2DModel`.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.dit_blocks import FeedForward, layer_norm
from dgjax.networks.dit_embeddings import Tokens, positions
from dgjax.networks.inputs import check_shape
from dgjax.networks.joint_attention import Attention, JointAttention, Modulation, modulated
from dgjax.networks.prompt_inputs import POOLED, PROMPT, PooledConditioning, check_prompt
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["SD3Transformer"]


class CroppedPatchEmbed(nnx.Module):
    """Project patches to tokens, and add their places in the middle of a grid of the largest size.

    Args:
        channels: channels of the image.
        patch: side of a patch.
        size: length of a token.
        largest: side of the largest grid of patches.
        base: places on the largest grid run from 0 to `base`.
        table: whether the vectors that stand for places are weights, instead of sinusoids.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        size: int,
        largest: int,
        base: int,
        table: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.largest, self.base = largest, base
        draw = nnx.initializers.normal(0.02)
        self.pos_embed = nnx.Param(draw(rngs.params(), (1, largest**2, size))) if table else None
        self.proj = nnx.Conv(
            channels, size, (patch, patch), strides=patch, padding="VALID", rngs=rngs
        )

    def __call__(self, x: Float[Array, "1 h w c"]) -> Tokens:
        """Return the tokens; their places are added in float32 at least."""
        h = self.proj(x)
        _, height, width, size = h.shape
        n = self.largest
        first = ((n - height) // 2, (n - width) // 2)
        if self.pos_embed is None:
            place = jnp.asarray(positions(height, width, size, first, n / self.base))
        else:
            grid = self.pos_embed[...].reshape(n, n, size)
            place = grid[first[0] : first[0] + height, first[1] : first[1] + width]
            place = place.reshape(height * width, size)
        h = h.reshape(1, height * width, size)
        return (h + place).astype(h.dtype)


class Block(nnx.Module):
    """A joint block: attention over text and image, and an MLP for each.

    Args:
        heads: number of attention heads.
        size: length of a token.
        normalized: whether queries and keys are normalized.
        dual: whether the image has a second attention, to itself alone.
        last: whether the text is only attended to, and not returned.
        rngs: draws the initial weights.
    """

    def __init__(
        self, heads: int, size: int, normalized: bool, dual: bool, last: bool, *, rngs: nnx.Rngs
    ):
        self.norm1 = Modulation(size, 9 if dual else 6, rngs=rngs)
        self.norm1_context = Modulation(size, 2 if last else 6, rngs=rngs)
        self.attn = JointAttention(heads, size, normalized, not last, rngs=rngs)
        self.attn2 = Attention(heads, size, normalized, rngs=rngs) if dual else None
        self.normalize = layer_norm(size, rngs)
        self.ff = FeedForward(size, True, rngs=rngs)
        self.ff_context = None if last else FeedForward(size, True, rngs=rngs)

    def __call__(
        self, text: Tokens, image: Tokens, vector: Float[Array, " d"]
    ) -> tuple[Tokens, Tokens]:
        """Apply the block to text and image; `vector` is the conditioning."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff, *second = self.norm1(vector)
        own, normal = self.norm1_context(vector), self.normalize(image)
        if self.ff_context is None:  # the last block has the scale first
            own = own[::-1]
        of_text, of_image = self.attn.both(
            modulated(self.normalize(text), own[0], own[1]), modulated(normal, shift, scale)
        )
        image = image + gate * of_image
        if self.attn2 is not None:
            image = image + second[2] * self.attn2(modulated(normal, second[0], second[1]))
        image = image + gate_ff * self.ff(modulated(self.normalize(image), shift_ff, scale_ff))
        if self.ff_context is not None:
            _, _, gate, shift_ff, scale_ff, gate_ff = own
            text = text + gate * of_text
            inner = modulated(self.normalize(text), shift_ff, scale_ff)
            text = text + gate_ff * self.ff_context(inner)
        return text, image


class SD3Transformer(nnx.Module):
    """The transformer of Stable Diffusion 3 and 3.5: `net(x, t, cond) -> out` on one latent.

    Patches of the latent and tokens of a text attend to each other in one sequence, with weights of
    their own for each (MMDiT, arXiv 2403.03206). A new network returns zeros.

    Args:
        shape: (H, W, C) of one latent.
        patch_size: side of a patch; H and W are multiples of it.
        num_layers: number of blocks, positive. The last one drops the text.
        num_attention_heads: number of attention heads.
        attention_head_dim: length of one head; the length of a token is the product of the two.
        joint_attention_dim: length of the embedding of a text's token.
        pooled_projection_dim: length of the pooled text.
        pos_embed_max_size: side of the largest grid of patches. Smaller grids are its middle.
        base_size: side of the grid of patches whose neighbours have distance 1; the largest grid
            is that grid with closer neighbours. Unless given, as of a latent of height H.
        dual_attention_layers: indices of blocks with a second attention, of the image alone.
        qk_norm: whether queries and keys are divided by their root mean square.
        position_table: whether the vectors that stand for places on the largest grid are weights,
            instead of sinusoids.
        rngs: draws the initial weights.

    Raises:
        ValueError: if the shape does not split into patches or has more than the largest grid,
            there are no blocks, or the length of a token is not a multiple of four.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        patch_size: int = 2,
        num_layers: int = 18,
        num_attention_heads: int = 18,
        attention_head_dim: int = 64,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 2048,
        pos_embed_max_size: int = 96,
        base_size: int | None = None,
        dual_attention_layers: tuple[int, ...] = (),
        qk_norm: bool = False,
        position_table: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 3 or patch_size < 1 or any(n % patch_size for n in shape[:2]):
            raise ValueError(
                f"this transformer takes latents (H, W, C) whose sides are multiples of "
                f"patch_size, got {tuple(shape)} and {patch_size}"
            )
        if max(shape[:2]) > patch_size * pos_embed_max_size:
            raise ValueError(
                f"this transformer takes latents of at most {patch_size * pos_embed_max_size} x "
                f"{patch_size * pos_embed_max_size}, got {shape[0]} x {shape[1]}"
            )
        if num_layers < 1:
            raise ValueError(f"num_layers must be positive, got {num_layers}")
        size = num_attention_heads * attention_head_dim
        if size < 4 or size % 4:
            raise ValueError(f"the length of a token must be a multiple of 4, got {size}")
        base = shape[0] // patch_size if base_size is None else base_size
        self.shape, self.patch_size = tuple(shape), patch_size
        self.joint_attention_dim, self.pooled_projection_dim = (
            joint_attention_dim,
            pooled_projection_dim,
        )
        self.pos_embed = CroppedPatchEmbed(
            shape[2], patch_size, size, pos_embed_max_size, base, position_table, rngs=rngs
        )
        self.time_text_embed = PooledConditioning(pooled_projection_dim, size, rngs=rngs)
        self.context_embedder = nnx.Linear(joint_attention_dim, size, rngs=rngs)
        self.transformer_blocks = nnx.List(
            Block(
                num_attention_heads,
                size,
                qk_norm,
                i in dual_attention_layers,
                i == num_layers - 1,
                rngs=rngs,
            )
            for i in range(num_layers)
        )
        self.norm_out = Modulation(size, 2, rngs=rngs)
        self.normalize = layer_norm(size, rngs)
        self.proj_out = nnx.Linear(
            size, patch_size**2 * shape[2], kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(self, x: Sample, t: Scalar, cond: Cond = None) -> Sample:
        """Apply the network to one latent.

        Args:
            x: the noisy latent, (H, W, C).
            t: the time step, 1000 times the time of rectified flow.
            cond: a mapping with the names of diffusers' arguments: `encoder_hidden_states`,
                (tokens, `joint_attention_dim`), the embeddings of the prompt, and
                `pooled_projections`, (`pooled_projection_dim`,), the pooled prompt.

        Returns:
            The network's prediction, (H, W, C).

        Raises:
            ValueError: if x has another shape, or a part of the condition is missing, left over or
                of another shape.
        """
        check_shape(x, self.shape)
        given = check_prompt(cond, self.joint_attention_dim, self.pooled_projection_dim, False)
        vector = self.time_text_embed(t, jnp.asarray(given[POOLED], x.dtype))
        text = self.context_embedder(jnp.asarray(given[PROMPT], x.dtype)[None])
        image = self.pos_embed(x[None])
        for block in self.transformer_blocks:
            text, image = block(text, image, vector)
        scale, shift = self.norm_out(vector)
        h = self.proj_out(modulated(self.normalize(image), shift, scale))
        height, width, channels = self.shape
        patch = self.patch_size
        h = h.reshape(height // patch, width // patch, patch, patch, channels)
        return h.transpose(0, 2, 1, 3, 4).reshape(self.shape).astype(x.dtype)
