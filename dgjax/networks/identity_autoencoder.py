"""The autoencoder of a model whose samples are pixels already: the identity."""

from dataclasses import dataclass, field

from flax import nnx

from dgjax.typing import Key, Sample, register_dataclass

__all__ = ["IdentityAutoencoder", "identity_autoencoder"]


@register_dataclass
@dataclass(frozen=True)
class IdentityAutoencoder:
    """An autoencoder that returns what it is given, so that all models can be treated alike.

    Attributes:
        image_shape: shape of one image, and of one sample.
    """

    image_shape: tuple[int, ...] = field(metadata={"static": True})

    def encode(self, image: Sample, *, key: Key | None = None) -> Sample:
        """Return `image` unchanged; `key` is not used."""
        return image

    def decode(self, x: Sample) -> Sample:
        """Return `x` unchanged."""
        return x


def identity_autoencoder(
    shape: tuple[int, ...], *, rngs: nnx.Rngs | None = None
) -> IdentityAutoencoder:
    """Make an identity autoencoder with the arguments that every autoencoder is made with.

    Args:
        shape: shape of one sample.
        rngs: not used, since there are no weights.

    Returns:
        The autoencoder.
    """
    return IdentityAutoencoder(tuple(shape))
