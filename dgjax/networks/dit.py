"""A diffusion transformer: patches as tokens, and every block scaled and shifted by the noise.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", with adaLN-Zero blocks. The
attributes have the names of diffusers' `DiTTransformer2DModel`, whose weights this network takes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.inputs import check_label
from dgjax.networks.unet2d import Positional, TimestepEmbedding
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["DiT"]

Tokens = Float[Array, "1 n d"]  # with the batch axis that flax's layers count on

GELU = {"gelu": False, "gelu-approximate": True}


def _norm(size: int, rngs: nnx.Rngs, affine: bool = False, epsilon: float = 1e-6) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        size,
        epsilon=epsilon,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,  # which cancels where the mean is large
        rngs=rngs,
    )


def positions(height: int, width: int, size: int) -> np.ndarray:
    """Fixed sinusoids of each token's column, then of its row: (height * width, size)."""
    rates = 1e4 ** -(np.arange(size // 4) / (size // 4))
    rows, columns = np.divmod(np.arange(height * width), width)
    angles = [np.outer(place, rates) for place in (columns, rows)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


class PatchEmbed(nnx.Module):
    """The image in patches, each projected to one token, plus where it is."""

    def __init__(self, channels: int, patch: int, size: int, *, rngs: nnx.Rngs):
        self.size = size
        self.proj = nnx.Conv(
            channels, size, (patch, patch), strides=patch, padding="VALID", rngs=rngs
        )

    def __call__(self, x: Float[Array, "1 h w c"]) -> Tokens:
        h = self.proj(x)
        _, height, width, _ = h.shape
        place = jnp.asarray(positions(height, width, self.size), h.dtype)
        return h.reshape(1, height * width, self.size) + place


class LabelEmbedding(nnx.Module):
    """A vector for each label, and one more for none."""

    def __init__(self, num_classes: int, size: int, *, rngs: nnx.Rngs):
        self.embedding_table = nnx.Embed(num_classes + 1, size, rngs=rngs)

    def __call__(self, label: Cond) -> Float[Array, "1 d"]:
        null = self.embedding_table.num_embeddings - 1
        label = null if label is None else label
        check_label(label, null - 1, null)
        return self.embedding_table(jnp.asarray(label)[None])


class Conditioning(nnx.Module):
    """The timestep and the label as one vector."""

    def __init__(self, num_classes: int, size: int, *, rngs: nnx.Rngs):
        self.time_proj = Positional(256, shift=1.0, cosines_first=True)
        self.timestep_embedder = TimestepEmbedding(256, size, rngs=rngs)
        self.class_embedder = LabelEmbedding(num_classes, size, rngs=rngs)

    def __call__(self, t: Scalar, label: Cond) -> Float[Array, "1 d"]:
        return self.timestep_embedder(self.time_proj(t)) + self.class_embedder(label)


class Modulation(nnx.Module):
    """Shift, scale and gate of a block's two halves, (1, 1, d) each."""

    def __init__(self, num_classes: int, size: int, *, rngs: nnx.Rngs):
        self.emb = Conditioning(num_classes, size, rngs=rngs)
        self.linear = nnx.Linear(size, 6 * size, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, t: Scalar, label: Cond) -> list[Array]:
        vector = self.linear(nnx.silu(self.emb(t, label)))
        return jnp.split(vector[:, None], 6, axis=-1)


class Attention(nnx.Module):
    """Self-attention over all tokens."""

    def __init__(self, heads: int, size: int, bias: bool, *, rngs: nnx.Rngs):
        self.heads = heads
        self.to_q = nnx.Linear(size, size, use_bias=bias, rngs=rngs)
        self.to_k = nnx.Linear(size, size, use_bias=bias, rngs=rngs)
        self.to_v = nnx.Linear(size, size, use_bias=bias, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(size, size, rngs=rngs)])

    def __call__(self, h: Tokens) -> Tokens:
        query, key, value = (
            layer(h).reshape(1, h.shape[1], self.heads, -1)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out[0](jax.nn.dot_product_attention(query, key, value).reshape(h.shape))


class Projection(nnx.Module):
    """A linear layer and its activation."""

    def __init__(self, inputs: int, outputs: int, approximate: bool, *, rngs: nnx.Rngs):
        self.approximate = approximate
        self.proj = nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, h: Tokens) -> Tokens:
        return nnx.gelu(self.proj(h), approximate=self.approximate)


class FeedForward(nnx.Module):
    """An MLP on each token."""

    def __init__(self, size: int, approximate: bool, *, rngs: nnx.Rngs):
        # The second is diffusers' dropout: it has no weights, and acts in training only.
        self.net = nnx.List(
            [
                Projection(size, 4 * size, approximate, rngs=rngs),
                nnx.Dropout(0.0),
                nnx.Linear(4 * size, size, rngs=rngs),
            ]
        )

    def __call__(self, h: Tokens) -> Tokens:
        return self.net[2](self.net[0](h))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and a gate that the noise level and label set."""

    def __init__(
        self,
        heads: int,
        size: int,
        num_classes: int,
        bias: bool,
        approximate: bool,
        affine: bool,
        epsilon: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm1 = Modulation(num_classes, size, rngs=rngs)
        self.normalize = _norm(size, rngs)
        self.attn1 = Attention(heads, size, bias, rngs=rngs)
        self.norm3 = _norm(size, rngs, affine, epsilon)
        self.ff = FeedForward(size, approximate, rngs=rngs)

    def __call__(self, h: Tokens, t: Scalar, label: Cond) -> Tokens:
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.norm1(t, label)
        h = h + gate * self.attn1(self.normalize(h) * (1 + scale) + shift)
        return h + gate_ff * self.ff(self.norm3(h) * (1 + scale_ff) + shift_ff)


class DiT(nnx.Module):
    """`net(x, t, cond) -> out` on ONE image or latent (H, W, C); `out` has its shape.

    t is the timestep that the network was trained with, 0 to 999 for most. With twice as many
    `out_channels` as inputs the network was trained to predict a variance too: only ancestral
    samplers use that half, and it is dropped.

    Args:
        shape: (H, W, C) of one sample.
        patch_size: side of a patch.
        num_layers: number of blocks.
        num_attention_heads, attention_head_dim: their product is the length of a token.
        num_classes: number of labels; the label `num_classes`, like `cond` None, is no label, and
            has a vector of its own.
        out_channels: C or 2 C; C if None.
        attention_bias: whether queries, keys and values have biases.
        activation: "gelu", or "gelu-approximate" by tanh.
        norm_affine, norm_eps: of the norm before each MLP.
        rngs: makes the initial weights, and is not kept.

    Raises:
        ValueError: if the shape does not split into patches, the tokens' length is no multiple of
            four, out_channels is neither C nor 2 C, or the activation is unknown; when called, if
            x has another shape or a label is out of range.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        patch_size: int = 2,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        num_classes: int = 1000,
        out_channels: int | None = None,
        attention_bias: bool = True,
        activation: str = "gelu-approximate",
        norm_affine: bool = False,
        norm_eps: float = 1e-5,
        *,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 3 or patch_size < 1 or any(n % patch_size for n in shape[:2]):
            raise ValueError(
                f"a DiT takes samples (H, W, C) whose sides are multiples of patch_size, got "
                f"{tuple(shape)} and {patch_size}"
            )
        size = num_attention_heads * attention_head_dim
        if size < 4 or size % 4:
            raise ValueError(f"the length of a token must be a multiple of 4, got {size}")
        channels = shape[2]
        out_channels = channels if out_channels is None else out_channels
        if out_channels not in (channels, 2 * channels):
            raise ValueError(
                f"out_channels must be {channels}, or {2 * channels} with a variance, got "
                f"{out_channels}"
            )
        if activation not in GELU:
            raise ValueError(f"activation must be one of {', '.join(GELU)}, got {activation!r}")
        self.shape = tuple(shape)
        self.patch_size = patch_size
        self.pos_embed = PatchEmbed(channels, patch_size, size, rngs=rngs)
        self.transformer_blocks = nnx.List(
            Block(
                num_attention_heads,
                size,
                num_classes,
                attention_bias,
                GELU[activation],
                norm_affine,
                norm_eps,
                rngs=rngs,
            )
            for _ in range(num_layers)
        )
        self.normalize = _norm(size, rngs)
        zeros = nnx.initializers.zeros
        self.proj_out_1 = nnx.Linear(size, 2 * size, kernel_init=zeros, rngs=rngs)
        self.proj_out_2 = nnx.Linear(
            size, patch_size**2 * out_channels, kernel_init=zeros, rngs=rngs
        )

    def __call__(self, x: Sample, t: Scalar, cond: Cond = None) -> Sample:
        if x.shape != self.shape:
            raise ValueError(f"x has shape {x.shape} and this network takes {self.shape}")
        h = self.pos_embed(x[None])
        for block in self.transformer_blocks:
            h = block(h, t, cond)
        vector = self.transformer_blocks[0].norm1.emb(t, cond)
        shift, scale = jnp.split(self.proj_out_1(nnx.silu(vector))[:, None], 2, axis=-1)
        h = self.proj_out_2(self.normalize(h) * (1 + scale) + shift)
        height, width, channels = self.shape
        patch = self.patch_size
        h = h.reshape(height // patch, width // patch, patch, patch, -1)
        h = h.transpose(0, 2, 1, 3, 4).reshape(height, width, -1)
        return h[..., :channels].astype(x.dtype)
