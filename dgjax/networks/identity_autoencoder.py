"""What stands in an autoencoder's place where a model's samples are pixels already."""

from dataclasses import dataclass, field

from flax import nnx

from dgjax.typing import Key, Sample, register_dataclass

__all__ = ["Pixels", "pixels"]


@register_dataclass
@dataclass(frozen=True)
class Pixels:
    """`encode(image)` and `decode(x)` change nothing. Made by `pixels`."""

    image_shape: tuple[int, ...] = field(metadata={"static": True})

    def encode(self, image: Sample, *, key: Key | None = None) -> Sample:
        return image

    def decode(self, x: Sample) -> Sample:
        return x


def pixels(shape: tuple[int, ...], *, rngs: nnx.Rngs | None = None) -> Pixels:
    """For samples of `shape`; without weights, and so without a use for `rngs`."""
    return Pixels(tuple(shape))
