"""A diffusion transformer: self-attention over patches of an image.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.inputs import check_label, check_shape
from dgjax.networks.time_features import Positional, TimestepEmbedding
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["DiT", "positions"]

Tokens = Float[Array, "1 n d"]  # with the batch axis that flax's layers need

# Whether the activation is approximated by tanh.
GELU = {"gelu": False, "gelu-approximate": True}


def _layer_norm(
    size: int, rngs: nnx.Rngs, affine: bool = False, epsilon: float = 1e-6
) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        size,
        epsilon=epsilon,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,  # a difference that cancels where the mean is large
        rngs=rngs,
    )


def positions(height: int, width: int, size: int) -> np.ndarray:
    """Return the fixed position embedding of each token: sinusoids of its column and its row.

    Args:
        height: rows of tokens.
        width: columns of tokens.
        size: length of a token, a multiple of 4.

    Returns:
        An array (height * width, size), in float32, with tokens in row-major order.
    """
    rates = 1e4 ** -(np.arange(size // 4) / (size // 4))
    rows, columns = np.divmod(np.arange(height * width), width)
    angles = [np.outer(index, rates) for index in (columns, rows)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


class PatchEmbed(nnx.Module):
    """Cut an image into patches, project each to a token, and add the token's position.

    Args:
        channels: channels of the image.
        patch: side of a patch.
        size: length of a token.
        rngs: draws the initial weights.
    """

    def __init__(self, channels: int, patch: int, size: int, *, rngs: nnx.Rngs):
        self.size = size
        self.proj = nnx.Conv(
            channels, size, (patch, patch), strides=patch, padding="VALID", rngs=rngs
        )

    def __call__(self, x: Float[Array, "1 h w c"]) -> Tokens:
        """Return the tokens."""
        h = self.proj(x)
        _, height, width, _ = h.shape
        position = jnp.asarray(positions(height, width, self.size), h.dtype)
        return h.reshape(1, height * width, self.size) + position


class LabelEmbedding(nnx.Module):
    """Look up a vector per label; there is one more for no label.

    Args:
        num_classes: number of labels.
        size: length of a vector.
        rngs: draws the initial weights.
    """

    def __init__(self, num_classes: int, size: int, *, rngs: nnx.Rngs):
        self.embedding_table = nnx.Embed(num_classes + 1, size, rngs=rngs)

    def __call__(self, label: Cond) -> Float[Array, "1 d"]:
        """Return the vector of a label; `num_classes` and None stand for no label."""
        null = self.embedding_table.num_embeddings - 1
        label = null if label is None else label
        check_label(label, null - 1, null)
        return self.embedding_table(jnp.asarray(label)[None])


class Conditioning(nnx.Module):
    """Embed the time step and the label as one vector.

    Args:
        num_classes: number of labels.
        size: length of the vector.
        freq_shift: `shift` of `dgjax.networks.time_features.Positional`.
        rngs: draws the initial weights.
    """

    def __init__(self, num_classes: int, size: int, freq_shift: float, *, rngs: nnx.Rngs):
        self.time_proj = Positional(256, freq_shift, cosines_first=True)
        self.timestep_embedder = TimestepEmbedding(256, size, rngs=rngs)
        self.class_embedder = LabelEmbedding(num_classes, size, rngs=rngs)

    def __call__(self, t: Scalar, label: Cond) -> Float[Array, "1 d"]:
        """Return the vector."""
        return self.timestep_embedder(self.time_proj(t)) + self.class_embedder(label)


class Modulation(nnx.Module):
    """A block's own conditioning, and the layer that makes shifts, scales and gates of it.

    Args:
        num_classes: number of labels.
        size: length of a token.
        freq_shift: as of `Conditioning`.
        rngs: draws the initial weights.
    """

    def __init__(self, num_classes: int, size: int, freq_shift: float, *, rngs: nnx.Rngs):
        self.emb = Conditioning(num_classes, size, freq_shift, rngs=rngs)
        self.linear = nnx.Linear(size, 6 * size, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, vector: Float[Array, "1 d"]) -> list[Float[Array, "1 1 d"]]:
        """Return shift, scale and gate of the attention, then of the MLP, from a conditioning."""
        return jnp.split(self.linear(nnx.silu(vector))[:, None], 6, axis=-1)


class Attention(nnx.Module):
    """Self-attention over all tokens.

    Args:
        heads: number of heads.
        size: length of a token.
        bias: whether queries, keys and values have biases.
        rngs: draws the initial weights.
    """

    def __init__(self, heads: int, size: int, bias: bool, *, rngs: nnx.Rngs):
        self.heads = heads
        self.to_q = nnx.Linear(size, size, use_bias=bias, rngs=rngs)
        self.to_k = nnx.Linear(size, size, use_bias=bias, rngs=rngs)
        self.to_v = nnx.Linear(size, size, use_bias=bias, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(size, size, rngs=rngs)])

    def __call__(self, h: Tokens) -> Tokens:
        """Apply the layer."""
        query, key, value = (
            layer(h).reshape(1, h.shape[1], self.heads, -1)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out[0](jax.nn.dot_product_attention(query, key, value).reshape(h.shape))


class Projection(nnx.Module):
    """A linear layer with GELU.

    Args:
        inputs: length of the input.
        outputs: length of the output.
        approximate: whether GELU is approximated by tanh.
        rngs: draws the initial weights.
    """

    def __init__(self, inputs: int, outputs: int, approximate: bool, *, rngs: nnx.Rngs):
        self.approximate = approximate
        self.proj = nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, h: Tokens) -> Tokens:
        """Apply the layer."""
        return nnx.gelu(self.proj(h), approximate=self.approximate)


class FeedForward(nnx.Module):
    """An MLP on each token, with four times as many hidden units.

    Args:
        size: length of a token.
        approximate: whether GELU is approximated by tanh.
        rngs: draws the initial weights.
    """

    def __init__(self, size: int, approximate: bool, *, rngs: nnx.Rngs):
        # diffusers has dropout at index 1; it is here for the names of the weights, and not called.
        self.net = nnx.List(
            [
                Projection(size, 4 * size, approximate, rngs=rngs),
                nnx.Dropout(0.0),
                nnx.Linear(4 * size, size, rngs=rngs),
            ]
        )

    def __call__(self, h: Tokens) -> Tokens:
        """Apply the MLP."""
        return self.net[2](self.net[0](h))


class Block(nnx.Module):
    """An adaLN-Zero block: attention and MLP, with shifts, scales and gates from a conditioning.

    Args:
        heads: number of attention heads.
        size: length of a token.
        num_classes: number of labels.
        bias: whether queries, keys and values have biases.
        approximate: whether GELU is approximated by tanh.
        affine: whether the normalization before the MLP has weights of its own.
        epsilon: added to the variance in that normalization.
        freq_shift: as of `Conditioning`.
        rngs: draws the initial weights.
    """

    def __init__(
        self,
        heads: int,
        size: int,
        num_classes: int,
        bias: bool,
        approximate: bool,
        affine: bool,
        epsilon: float,
        freq_shift: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm1 = Modulation(num_classes, size, freq_shift, rngs=rngs)
        self.normalize = _layer_norm(size, rngs)
        self.attn1 = Attention(heads, size, bias, rngs=rngs)
        self.norm3 = _layer_norm(size, rngs, affine, epsilon)
        self.ff = FeedForward(size, approximate, rngs=rngs)

    def __call__(self, h: Tokens, vector: Float[Array, "1 d"]) -> Tokens:
        """Apply the block; `vector` is the conditioning `norm1.emb(t, label)`."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.norm1(vector)
        h = h + gate * self.attn1(self.normalize(h) * (1 + scale) + shift)
        return h + gate_ff * self.ff(self.norm3(h) * (1 + scale_ff) + shift_ff)


class DiT(nnx.Module):
    """The diffusion transformer DiT (arXiv 2212.09748): `net(x, t, cond) -> out`.

    It acts on one image or latent (H, W, C), with adaLN-Zero blocks. A new network returns zeros.

    Args:
        shape: (H, W, C) of one sample.
        patch_size: side of a patch; H and W are multiples of it.
        num_layers: number of blocks, positive.
        num_attention_heads: number of attention heads.
        attention_head_dim: length of one head; the length of a token is the product of the two.
        num_classes: number of labels. The label `num_classes`, like `cond` None, stands for no
            label, which has a vector of its own.
        out_channels: C (also if None), or 2 C for a network trained to predict a variance too. That
            half serves ancestral samplers only, and is dropped.
        attention_bias: whether queries, keys and values have biases.
        activation: "gelu", or "gelu-approximate" for GELU approximated by tanh.
        norm_affine: whether the normalization before each MLP has weights.
        norm_eps: added to the variance in that normalization.
        freq_shift: `shift` of `dgjax.networks.time_features.Positional`: 1 in diffusers, 0 in the
            authors' code.
        rngs: draws the initial weights.

    Raises:
        ValueError: if the shape does not split into patches, there are no blocks, the length of a
            token is not a multiple of four, out_channels is neither C nor 2 C, or the activation is
            unknown.
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
        freq_shift: float = 1.0,
        *,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 3 or patch_size < 1 or any(n % patch_size for n in shape[:2]):
            raise ValueError(
                f"a DiT takes samples (H, W, C) whose sides are multiples of patch_size, got "
                f"{tuple(shape)} and {patch_size}"
            )
        if num_layers < 1:
            raise ValueError(f"num_layers must be positive, got {num_layers}")
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
                freq_shift,
                rngs=rngs,
            )
            for _ in range(num_layers)
        )
        self.normalize = _layer_norm(size, rngs)
        zeros = nnx.initializers.zeros
        self.proj_out_1 = nnx.Linear(size, 2 * size, kernel_init=zeros, rngs=rngs)
        self.proj_out_2 = nnx.Linear(
            size, patch_size**2 * out_channels, kernel_init=zeros, rngs=rngs
        )

    def __call__(self, x: Sample, t: Scalar, cond: Cond = None) -> Sample:
        """Apply the network to one sample.

        Args:
            x: the noisy sample, (H, W, C).
            t: the time step, 0 to 999 for most networks.
            cond: a class label, or None.

        Returns:
            The network's prediction, (H, W, C).

        Raises:
            ValueError: if x has another shape or the label is out of range.
        """
        check_shape(x, self.shape)
        h = self.pos_embed(x[None])
        vectors = [block.norm1.emb(t, cond) for block in self.transformer_blocks]
        for block, vector in zip(self.transformer_blocks, vectors, strict=True):
            h = block(h, vector)
        # diffusers' last layer has the conditioning of the first block.
        shift, scale = jnp.split(self.proj_out_1(nnx.silu(vectors[0]))[:, None], 2, axis=-1)
        h = self.proj_out_2(self.normalize(h) * (1 + scale) + shift)
        height, width, channels = self.shape
        patch = self.patch_size
        h = h.reshape(height // patch, width // patch, patch, patch, -1)
        h = h.transpose(0, 2, 1, 3, 4).reshape(height, width, -1)
        return h[..., :channels].astype(x.dtype)
