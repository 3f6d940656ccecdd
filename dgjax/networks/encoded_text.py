"""The result of a text encoder."""

from typing import NamedTuple

from jaxtyping import Array, Float

__all__ = ["EncodedText", "Tokens"]

Tokens = Float[Array, "n c"]


class EncodedText(NamedTuple):
    """The result of a text encoder for one prompt.

    Attributes:
        last: one vector per token, after all layers and the last normalization.
        penultimate: the same before the last layer, and not normalized.
        pooled: one vector of the whole text; of length 0 if the encoder has none.
    """

    last: Tokens
    penultimate: Tokens
    pooled: Float[Array, " p"]
