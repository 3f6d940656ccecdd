"""Sum up the errors of a log-density that are known step by step."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from dgjax.typing import Scalar, safe_sqrt

__all__ = ["ErrorSums"]


class ErrorSums(NamedTuple):
    """Sums of the errors of the log-density over the steps, in nats.

    Attributes:
        signed: sum of the errors.
        squares: sum of their squares.
    """

    signed: Scalar
    squares: Scalar

    @classmethod
    def zero(cls, like: Array) -> "ErrorSums":
        """Return the sums over no step.

        Args:
            like: an array of their dtype.
        """
        return cls(jnp.zeros((), like.dtype), jnp.zeros((), like.dtype))

    def add(self, error: Scalar) -> "ErrorSums":
        """Return the sums with one more step.

        Args:
            error: of the step, in nats.
        """
        return ErrorSums(self.signed + error, self.squares + error**2)

    @property
    def size(self) -> Scalar:
        """Estimate of the size of the error at the end, in nats.

        Errors of equal sign add up. Others may cancel by chance, so the estimate is not below
        twice the root of the sum of squares.
        """
        return jnp.maximum(jnp.abs(self.signed), 2 * safe_sqrt(self.squares))
