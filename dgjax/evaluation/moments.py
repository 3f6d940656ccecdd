"""Mean and spread of values that arrive in parts, such as shards of samples."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["Moments", "moments"]


class Moments(NamedTuple):
    """Number, mean and sum of squared deviations of any number of quantities.

    Attributes:
        number: number of values of each quantity.
        mean: (...) mean of each quantity.
        squares: (...) sum of squared deviations from the mean.
    """

    number: int
    mean: Float[np.ndarray, "..."]
    squares: Float[np.ndarray, "..."]

    def join(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of values together.

        By the update of Chan, Golub and LeVeque, without the cancellation of sums of squares.
        """
        number = self.number + other.number
        apart, share = other.mean - self.mean, other.number / number
        squares = self.squares + other.squares + apart**2 * (self.number * share)
        return Moments(number, self.mean + apart * share, squares)

    @property
    def deviation(self) -> Float[np.ndarray, "..."] | None:
        """Standard deviation of each quantity (unbiased variance); None for a single value."""
        return None if self.number < 2 else np.sqrt(self.squares / (self.number - 1))


def moments(values: Float[np.ndarray, "... n"]) -> Moments:
    """Return the moments of `values` along the last axis, in float64."""
    values = np.asarray(values, np.float64)
    mean = values.mean(-1)
    return Moments(values.shape[-1], mean, ((values - mean[..., None]) ** 2).sum(-1))
