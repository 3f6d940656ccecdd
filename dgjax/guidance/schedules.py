"""Numbers that vary with the noise level, as arrays: another schedule is not another program."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgjax.typing import Scalar, as_float, concrete, register_dataclass

__all__ = ["Schedule", "Window", "schedule", "window"]


@register_dataclass
@dataclass(frozen=True)
class Schedule:
    """A number as a function of log-SNR, linear between knots. Made by `schedule`."""

    knots: Float[Array, " n"]
    values: Float[Array, " n"]

    def __call__(self, logsnr: Scalar) -> Scalar:
        return jnp.interp(logsnr, self.knots, self.values)


def schedule(value: ArrayLike | Schedule, knots: ArrayLike | None = None) -> Schedule:
    """`value` as a schedule: constant, or linear in log-SNR between `knots`.

    Args:
        value: a number, or (n,) values at the knots, or a schedule, which is returned.
        knots: (n,) increasing log-SNRs.

    Raises:
        ValueError: if the knots do not increase or their number is not that of the values.
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
    numbers = concrete(knots)
    if numbers is not None and not (np.diff(numbers) > 0).all():
        raise ValueError("knots must increase (they are log-SNRs, noise to data)")
    return Schedule(knots, value)


@register_dataclass
@dataclass(frozen=True)
class Window:
    """`height` between two log-SNRs and 0 outside. Made by `window`."""

    low: Scalar
    high: Scalar
    height: Scalar

    def __call__(self, logsnr: Scalar) -> Scalar:
        return jnp.where((logsnr >= self.low) & (logsnr < self.high), self.height, 0.0)


def window(
    height: ArrayLike = 1.0, *, low: ArrayLike = -jnp.inf, high: ArrayLike = jnp.inf
) -> Window:
    """`height` while `low` <= log-SNR < `high`, 0 elsewhere: noise, or a guide, for some levels.

    What acts 'early', near the prior, has only `high` set; 'late', near the data, only `low`.

    Raises:
        ValueError: if low >= high or the height is negative.
    """
    low, high, height = as_float(low), as_float(high), as_float(height)
    a, b, h = concrete(low), concrete(high), concrete(height)
    if a is not None and b is not None and not a < b:
        raise ValueError(f"a window needs low < high (log-SNRs), got {a:g} and {b:g}")
    if h is not None and not h >= 0:
        raise ValueError(f"height must not be negative, got {h:g}")
    return Window(low, high, height)
