"""Energy networks: one number for a sample, from the inner product with another network's output.

The energy is e(z, t) = -<z, F(z', t)> c(r) - D b(t), with F a network such as a U-Net, D the number
of elements, t = log(r)/4 and r = w/sigma_data. F keeps its bias towards local structure (arXiv
2506.05310). The number b(t) is free, because the inner product is 0 at z = 0.

F sees z' = z/sqrt(1 + |z|^2/(9 D)), which is nearly z where samples are and stays bounded far from
them. So the energy grows no faster than |z|, the Gaussian beside it faster, and the density can be
normalized whatever the weights. Without that, guidance to low log-densities found directions in
which it grew without end.

The factor is c(r) = 1/sqrt(r^2 + 0.3^2). Where noise outweighs the data, a log-density differs from
that of a Gaussian by a part of size 1/r. At low noise it has a limit wherever data have a density.
There a factor 1/r, which would give the gradient its size, multiplies errors of F, too.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from dgjax.networks.embedding import Embedding
from dgjax.networks.mlp import MLP
from dgjax.networks.unet import UNet
from dgjax.typing import Cond, Sample, Scalar

__all__ = ["EnergyMLP", "EnergyUNet"]

OFFSET_UNITS = 32
# Noise, in units of sigma_data, below which the factor of the inner product stays. On a mixture and
# on a kernel density of digits 0 and 1 gave larger errors of log p, and 0.1 on the latter.
KNEE = 0.3
FAR = 3.0  # root mean square of z, which is about 1 for samples, at which F sees no larger ones


class _Energy(nnx.Module):
    """The energy -<z, F(z', t)> c(r) - D b(t) of a network F. A new one returns 0."""

    def __init__(self, inner: nnx.Module, num_classes: int | None, rngs: nnx.Rngs):
        self.inner = inner
        self.embed = Embedding(OFFSET_UNITS, num_classes, rngs=rngs)
        self.offset = nnx.Linear(OFFSET_UNITS, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Sample, t: Scalar, cond: Cond = None, **keywords: Any) -> Scalar:
        """Return the energy of one sample, a scalar.

        Args:
            x: y/sqrt(w^2 + sigma_data^2), of the shape of this network.
            t: log(w/sigma_data)/4.
            cond: a class label, or None.
            **keywords: further arguments of the inner network.

        Raises:
            ValueError: if x has another shape or the label is not one of this network.
        """
        near = x / jnp.sqrt(1 + jnp.mean(x**2) / FAR**2)
        product = jnp.sum(x * self.inner(near, t, cond, **keywords))
        offset = x.size * self.offset(self.embed(t, cond))[0]
        factor = 1 / jnp.hypot(jnp.exp(4 * t), KNEE)
        return (-product * factor - offset).astype(x.dtype)


class EnergyMLP(_Energy):
    """The energy of an `MLP`: `net(x, t, cond) -> energy` of one sample of any shape.

    Use it with `energy_prediction`. A new network returns 0.

    Args:
        shape: shape of one sample.
        width: units of each hidden layer.
        depth: number of hidden layers; all but the first are residual.
        num_classes: number of labels, or None for a network without labels.
        rngs: draws the initial weights.

    Raises:
        ValueError: if width or depth is not positive.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 256,
        depth: int = 4,
        num_classes: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(MLP(shape, width, depth, num_classes, rngs=rngs), num_classes, rngs)


class EnergyUNet(_Energy):
    """The energy of a `UNet`: `net(x, t, cond) -> energy` of one sample.

    Use it with `energy_prediction`. A new network returns 0.

    Args:
        shape: (L, C), (H, W, C) or (D, H, W, C) of one sample.
        channels: channels of each level, positive multiples of 8 (of 64 from 64 on).
        blocks: residual blocks on each level, each way.
        embedding: length of the vector that carries the noise level and the label.
        num_classes: number of labels, or None for a network without labels.
        frequencies: of the sinusoids of pixel values, in radians per unit of pixel value.
        dropout: probability of dropping a unit in training.
        num_augmentations: number of augmentations that training may tell the network, or None.
        rngs: draws the initial weights.

    Raises:
        ValueError: as of `UNet`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: tuple[int, ...] = (64, 128),
        blocks: int = 2,
        embedding: int = 128,
        num_classes: int | None = None,
        frequencies: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0),
        dropout: float = 0.0,
        num_augmentations: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        inner = UNet(
            shape,
            channels,
            blocks,
            embedding,
            num_classes,
            frequencies,
            dropout,
            num_augmentations,
            rngs=rngs,
        )
        super().__init__(inner, num_classes, rngs)
