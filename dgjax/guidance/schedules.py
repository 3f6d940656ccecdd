"""Functions of the log-SNR. Their numbers are arrays, so a changed number never recompiles."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.faults import Fault, check, numbers, refuse, require
from dgjax.typing import Scalar, as_float, register_dataclass

__all__ = ["Schedule", "Window", "schedule", "window"]


@register_dataclass
@dataclass(frozen=True)
class Schedule:
    """A function of log-SNR, linear between knots and constant outside. Made by `schedule`.

    Attributes:
        knots: `(n,)` increasing log-SNRs.
        values: `(n,)` values at the knots.
    """

    knots: Float[Array, " n"]
    values: Float[Array, " n"]

    def __call__(self, logsnr: Scalar) -> Scalar:
        """Return the value at `logsnr`."""
        return jnp.interp(logsnr, self.knots, self.values)


def schedule(value: ArrayLike | Schedule, knots: ArrayLike | None = None) -> Schedule:
    """Make a schedule: a constant, or a function linear in log-SNR between `knots`.

    Args:
        value: a number, or `(n,)` values at the knots, or a schedule, which is returned as it is.
        knots: `(n,)` increasing log-SNRs.

    Returns:
        A function of log-SNR.

    Raises:
        ValueError: if the knots do not increase, or their number differs from that of the values.
    """
    if isinstance(value, Schedule):
        return value
    value = as_float(value)
    if knots is None:
        if value.ndim:
            raise ValueError("a schedule of several values needs knots, their log-SNRs")
        return Schedule(jnp.zeros(1), value[None])
    knots = as_float(knots)
    if knots.ndim != 1 or knots.shape != value.shape:
        raise ValueError(f"knots {knots.shape} and values {value.shape} must both be (n,)")
    knots = require(
        "knots",
        knots,
        "increase",
        lambda knots: knots[1:] > knots[:-1],
        fix="they are log-SNRs, which rise from noise to data",
    )
    return Schedule(knots, value)


@register_dataclass
@dataclass(frozen=True)
class Window:
    """`height` while low <= log-SNR < high, and 0 elsewhere. Made by `window`.

    Attributes:
        low: smallest log-SNR of the window.
        high: log-SNR at which the window ends.
        height: value inside the window.
    """

    low: Scalar
    high: Scalar
    height: Scalar

    def __call__(self, logsnr: Scalar) -> Scalar:
        """Return the value at `logsnr`."""
        return jnp.where((logsnr >= self.low) & (logsnr < self.high), self.height, 0.0)


def window(
    height: ArrayLike = 1.0, *, low: ArrayLike = -jnp.inf, high: ArrayLike = jnp.inf
) -> Window:
    """Make a window: `height` while `low` <= log-SNR < `high`, and 0 elsewhere.

    It restricts noise or a guide to some noise levels. Set only `high` to act early in sampling,
    near the prior; set only `low` to act late, near the data.

    Args:
        height: value inside the window, not negative.
        low: smallest log-SNR of the window.
        high: log-SNR at which the window ends.

    Returns:
        A function of log-SNR.

    Raises:
        ValueError: if `low` >= `high` or the height is negative.
    """
    low, high, height = as_float(low), as_float(high), as_float(height)
    a, b = numbers(low, high)
    message = "a window needs two log-SNRs, low < high, got {a:g} and {b:g}"
    ordered = check(a < b, Fault.GUIDE_NUMBER, message, a=a, b=b)
    height = require("height", height, "not be negative", lambda height: height >= 0)
    return Window(low, high, refuse(ordered, height))
