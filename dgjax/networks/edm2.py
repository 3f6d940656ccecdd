"""The magnitude-preserving U-Net of EDM2 (arXiv 2312.02696, config G).

Every layer keeps the expected magnitude of its features: convolutions and linear layers have no
bias and weights of unit norm, sums and concatenations are rescaled by constants, and there is no
group normalization. The attributes that hold weights have the names of EDM2's modules, because
checkpoints are read by these names.
"""

from math import sqrt
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.attention import attend
from dgjax.networks.convolution import convolve
from dgjax.networks.edm_blocks import check_levels, one_hot
from dgjax.networks.inputs import check_shape
from dgjax.networks.resampling import filter_down, filter_up
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["EDM2UNet", "pixel_norm"]

Image = Float[Array, "1 h w c"]  # with the batch axis that flax's layers need
EPS = 1e-4  # added to magnitudes before they divide
SILU_MAGNITUDE = 0.596  # root mean square of silu(z) for a standard normal z


def mp_silu(h: Array) -> Array:
    """Return SiLU divided by its expected magnitude (EDM2, eq. 81)."""
    return nnx.silu(h) / SILU_MAGNITUDE


def mp_sum(a: Array, b: Array, weight: float) -> Array:
    """Return (1 - weight) a + weight b over its expected magnitude (EDM2, eq. 88)."""
    return ((1 - weight) * a + weight * b) / sqrt((1 - weight) ** 2 + weight**2)


def mp_concatenate(a: Array, b: Array, weight: float) -> Array:
    """Concatenate channels; `weight` is the share of b in what follows (EDM2, eq. 103)."""
    m, n = a.shape[-1], b.shape[-1]
    scale = sqrt((m + n) / ((1 - weight) ** 2 + weight**2))
    parts = [scale * (1 - weight) / sqrt(m) * a, scale * weight / sqrt(n) * b]
    return jnp.concatenate(parts, -1)


def pixel_norm(h: Array, axis: int = -1) -> Array:
    """Divide by the root mean square along one axis."""
    square = jnp.mean(h**2, axis, keepdims=True)
    positive = square > 0
    # The square root has no derivative at 0.
    magnitude = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
    return h / (magnitude + EPS)


def _conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs) -> nnx.Conv:
    init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        use_bias=False,
        kernel_init=init,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=init, rngs=rngs)


class MPFourier(nnx.Module):
    """Random cosines of t of unit magnitude (EDM2, eq. 75); training keeps them fixed.

    Args:
        size: number of features.
        rngs: draws frequencies and phases.
    """

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.freqs = nnx.Param(2 * jnp.pi * rngs.params.normal((size,)))
        self.phases = nnx.Param(2 * jnp.pi * rngs.params.uniform((size,)))

    def __call__(self, t: Scalar) -> Array:
        """Return the features of `t`, in EDM2 log(sigma)/4."""
        freqs, phases = jax.lax.stop_gradient((self.freqs[...], self.phases[...]))
        return sqrt(2) * jnp.cos(t * freqs + phases)


class EDM2Block(nnx.Module):
    """Residual block of the encoder or the decoder, with self-attention after it.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        embedding: length of the vector that carries noise level and class.
        side: "encoder", where the input is projected and normalized first, or "decoder".
        resample: "down" halves the resolution, "up" doubles it, "keep" keeps it.
        kernel: smoothing filter of `dgjax.networks.resampling`.
        heads: number of attention heads; 0 for no attention.
        res_balance: weight of the residual branch.
        attn_balance: weight of the attention.
        clip_act: greatest absolute value of the output, or None for no limit.
        rngs: draws the initial weights.

    Raises:
        ValueError: if the channels do not split into the heads.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        side: Literal["encoder", "decoder"],
        resample: Literal["down", "up", "keep"] = "keep",
        *,
        kernel: tuple[float, ...],
        heads: int,
        res_balance: float,
        attn_balance: float,
        clip_act: float | None,
        rngs: nnx.Rngs,
    ):
        if heads and outputs % heads:
            raise ValueError(f"{outputs} channels do not split into {heads} attention heads")
        self.outputs, self.side, self.resample, self.kernel = outputs, side, resample, kernel
        self.heads, self.clip_act = heads, clip_act
        self.res_balance, self.attn_balance = res_balance, attn_balance
        self.emb_gain = nnx.Param(jnp.zeros(()))
        first = outputs if side == "encoder" else inputs
        self.conv_res0 = _conv(first, outputs, 3, rngs)
        self.emb_linear = _linear(embedding, outputs, rngs)
        self.conv_res1 = _conv(outputs, outputs, 3, rngs)
        self.conv_skip = None if inputs == outputs else _conv(inputs, outputs, 1, rngs)
        self.attn_qkv = _conv(outputs, 3 * outputs, 1, rngs) if heads else None
        self.attn_proj = _conv(outputs, outputs, 1, rngs) if heads else None

    def __call__(self, h: Image, embedding: Array) -> Image:
        """Apply the block."""
        if self.resample != "keep":
            h = (filter_down if self.resample == "down" else filter_up)(h, self.kernel)
        if self.side == "encoder":
            h = pixel_norm(h if self.conv_skip is None else self.conv_skip(h))
        out = self.conv_res0(mp_silu(h))
        out = mp_silu(out * (1 + self.emb_gain[...] * self.emb_linear(embedding)))
        out = self.conv_res1(out)
        if self.side == "decoder" and self.conv_skip is not None:
            h = self.conv_skip(h)
        h = mp_sum(h, out, self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            # EDM2's order of channels: query, key and value of one channel are neighbours.
            qkv = self.attn_qkv(h).reshape(1, -1, self.heads, self.outputs // self.heads, 3)
            # Apart: with the axes of vmaps a sum over one of 8 axes would crash XLA on CPUs.
            out = attend(*(pixel_norm(qkv[..., i], axis=-1) for i in range(3)))
            h = mp_sum(h, self.attn_proj(out.reshape(h.shape)), self.attn_balance)
        return h if self.clip_act is None else jnp.clip(h, -self.clip_act, self.clip_act)


class EDM2UNet(nnx.Module):
    """The U-Net of EDM2: `net(x, t, cond) -> out` on one image (H, W, C).

    The parametrization `preconditioned` passes log(sigma)/4 as t. A new network returns zeros.
    Nothing here keeps the norms of weights during training, which EDM2's training does.

    Args:
        shape: (H, W, C) of one image.
        num_classes: number of labels, or None for a network without labels. EDM2 trains with a
            label for every image; a network of other training may take the label `num_classes`,
            which stands for no label.
        model_channels: base number of channels.
        channel_mult: channels of each level, as multiples of `model_channels`.
        channel_mult_noise: number of features of the noise level, as a multiple of
            `model_channels`; that of the first level if None.
        channel_mult_emb: length of the embedding, as a multiple of `model_channels`; that of the
            widest level if None.
        num_blocks: residual blocks of a level of the encoder; one more in the decoder.
        attn_resolutions: heights of an image at which blocks have attention. One block at the
            lowest resolution always has.
        channels_per_head: channels of an attention head. Levels with fewer have no attention.
        resample_filter: smoothing filter along one side, see `dgjax.networks.resampling`.
        label_balance: weight of the label in the embedding.
        concat_balance: weight of the skip connections in the decoder.
        res_balance: weight of the residual branches.
        attn_balance: weight of the attention.
        clip_act: greatest absolute value of a block's output, or None for no limit.
        rngs: draws the initial weights.

    Raises:
        ValueError: if sizes do not fit each other.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int | None = None,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (16, 8),
        channels_per_head: int = 64,
        resample_filter: tuple[float, ...] = (1, 1),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256.0,
        *,
        rngs: nnx.Rngs,
    ):
        check_levels(shape, channel_mult, num_blocks, resample_filter)
        self.shape, self.num_classes = tuple(shape), num_classes
        self.label_balance, self.concat_balance = label_balance, concat_balance
        widths = [model_channels * multiple for multiple in channel_mult]
        attention = [shape[0] >> i in attn_resolutions for i in range(len(widths))]
        noise = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        size = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb

        def block(inputs, outputs, side, attend=False, resample="keep"):
            return EDM2Block(
                inputs,
                outputs,
                size,
                side,
                resample,
                kernel=tuple(resample_filter),
                heads=outputs // channels_per_head if attend else 0,
                res_balance=res_balance,
                attn_balance=attn_balance,
                clip_act=clip_act,
                rngs=rngs,
            )

        self.emb_fourier = MPFourier(noise, rngs=rngs)
        self.emb_noise = _linear(noise, size, rngs)
        self.emb_label = None if num_classes is None else _linear(num_classes, size, rngs)
        self.in_conv = _conv(shape[2] + 1, widths[0], 3, rngs)
        self.enc: nnx.List = nnx.List()
        skips, last = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            if level > 0:
                self.enc.append(block(last, last, "encoder", resample="down"))
                skips.append(last)
            for _ in range(num_blocks):
                self.enc.append(block(last, width, "encoder", attention[level]))
                skips.append(width)
                last = width
        # The blocks of the decoder that take a skip connection, by their place in `dec`.
        self.merges: tuple[int, ...] = ()
        self.dec = nnx.List([block(last, last, "decoder", True), block(last, last, "decoder")])
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                self.dec.append(block(last, last, "decoder", resample="up"))
            for _ in range(num_blocks + 1):
                self.merges += (len(self.dec),)
                self.dec.append(block(last + skips.pop(), width, "decoder", attention[level]))
                last = width
        self.out_conv = _conv(last, shape[2], 3, rngs)
        self.out_gain = nnx.Param(jnp.zeros(()))

    def __call__(self, x: Sample, t: Scalar, cond: Cond = None) -> Sample:
        """Apply the network to one image.

        Args:
            x: the noisy image, (H, W, C).
            t: the noise level as the parametrization passes it.
            cond: the class label; None for a network without labels.

        Returns:
            The network's prediction, (H, W, C).

        Raises:
            ValueError: if x has another shape, or the label is missing or not one of this network.
        """
        check_shape(x, self.shape)
        if cond is None and self.num_classes is not None:
            raise ValueError(
                "this network was trained with a class for every image: pass a class label as cond"
            )
        embedding = self.emb_noise(self.emb_fourier(t))
        label = one_hot(cond, self.num_classes)
        if label is not None and self.emb_label is not None:
            label = self.emb_label(sqrt(label.size) * label)
            embedding = mp_sum(embedding, label, self.label_balance)
        embedding = mp_silu(embedding)
        # A channel of ones stands in for the biases.
        h = self.in_conv(jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)[None])
        skips = [h]
        for block in self.enc:
            h = block(h, embedding)
            skips.append(h)
        for i, block in enumerate(self.dec):
            if i in self.merges:
                h = mp_concatenate(h, skips.pop(), self.concat_balance)
            h = block(h, embedding)
        return (self.out_gain[...] * self.out_conv(h))[0].astype(x.dtype)
