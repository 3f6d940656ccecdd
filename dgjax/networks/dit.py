"""A diffusion transformer: self-attention over patches of an image.

The attributes that hold weights have the names of diffusers' modules, because checkpoints are
read by these names.
"""

import jax.numpy as jnp
from flax import nnx

from dgjax.networks.dit_blocks import Block, layer_norm
from dgjax.networks.dit_embeddings import Conditioning, PatchEmbed
from dgjax.networks.inputs import check_shape
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["DiT"]

# Whether the activation is approximated by tanh.
GELU = {"gelu": False, "gelu-approximate": True}


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
        shared_embedding: whether all blocks have one embedding of time and label, as in the
            authors' code. In diffusers each block has its own.
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
        shared_embedding: bool = False,
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

        def embedding(needed: bool) -> Conditioning | None:
            return Conditioning(num_classes, size, freq_shift, rngs=rngs) if needed else None

        self.emb = embedding(shared_embedding)
        self.transformer_blocks = nnx.List(
            Block(
                num_attention_heads,
                size,
                embedding(not shared_embedding),
                attention_bias,
                GELU[activation],
                norm_affine,
                norm_eps,
                rngs=rngs,
            )
            for _ in range(num_layers)
        )
        self.normalize = layer_norm(size, rngs)
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
        own = [block.norm1.emb for block in self.transformer_blocks]
        vectors = [emb(t, cond) for emb in own if emb is not None]
        if self.emb is not None:
            vectors = len(own) * [self.emb(t, cond)]
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
