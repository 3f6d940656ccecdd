"""Specify an autoencoder in plain numbers and names, as checkpoints of latent models hold it.

It is `{"kind": name, ...arguments}`: the name of a constructor and its arguments.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flax import nnx

from dgjax.checkpoints.configuration import check_kind, check_sizes, construct
from dgjax.networks import AutoencoderKL, VQModel, identity_autoencoder
from dgjax.typing import Key, Sample

__all__ = ["AUTOENCODERS", "Autoencoder", "build_autoencoder", "check_autoencoder"]

AUTOENCODERS: dict[str, Callable[..., Any]] = {
    "pixels": identity_autoencoder,
    "autoencoder_kl": AutoencoderKL,
    "vq_model": VQModel,
}


class Autoencoder(Protocol):
    """Maps between a model's samples and images, one at a time.

    Attributes:
        image_shape: shape (H, W, C) of one image.
    """

    image_shape: tuple[int, ...]

    def encode(self, image: Sample, *, key: Key | None = None) -> Sample:
        """Map an image to a sample: the encoder's mean, or a draw from its Gaussian with `key`."""
        ...

    def decode(self, x: Sample) -> Sample:
        """Map a sample to an image."""
        ...


def check_autoencoder(values: Any) -> None:
    """Check that `values` specify an autoencoder.

    Raises:
        ValueError: if the kind or the name of an argument is unknown, or a value is of a wrong
            type.
    """
    check_kind("autoencoder", AUTOENCODERS, values, ("shape", "rngs"))
    check_sizes("autoencoder", values)


def build_autoencoder(
    values: Mapping[str, Any], shape: tuple[int, ...], seed: int = 0
) -> Autoencoder:
    """Build an autoencoder with fresh weights.

    Args:
        values: `{"kind": name, ...arguments}`, a kind of `AUTOENCODERS`.
        shape: shape of one sample of the diffusion model, which the autoencoder decodes.
        seed: of the weights.

    Raises:
        ValueError: if `values` specify no autoencoder, or the constructor refuses its arguments.
    """
    return construct("autoencoder", AUTOENCODERS, values, shape=shape, rngs=nnx.Rngs(seed))
