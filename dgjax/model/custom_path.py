"""A Gaussian path that two functions of t give."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import Array, ArrayLike

from dgjax.model.faults import Fault, check, numbers, refuse
from dgjax.model.paths import Path
from dgjax.typing import Scalar, as_float, register_dataclass

__all__ = ["custom"]


@register_dataclass
@dataclass(frozen=True)
class Custom(Path):
    """A path given by two functions of t. Made by `custom`.

    Attributes:
        alpha_fn: scale of the data as a function of t.
        sigma_fn: standard deviation of the noise as a function of t.
        lower: smallest time.
        upper: largest time.
    """

    alpha_fn: Callable[[Scalar], Scalar] = field(metadata={"static": True})
    sigma_fn: Callable[[Scalar], Scalar] = field(metadata={"static": True})
    lower: Array
    upper: Array

    def alpha(self, t: Scalar) -> Scalar:
        """Return the scale of the data at time t."""
        return self.alpha_fn(t)

    def sigma(self, t: Scalar) -> Scalar:
        """Return the standard deviation of the noise at time t."""
        return self.sigma_fn(t)

    def time(self, logsnr: Scalar) -> Scalar:
        """Return the time at which the log-SNR equals `logsnr`."""
        # The root of sigma a - alpha s, with a/s the wanted ratio of alpha to sigma and
        # a^2 + s^2 = 1. Unlike the log-SNR it is finite at both ends; unlike an angle it is
        # accurate relative to its terms.
        logsnr = as_float(logsnr)
        target = jnp.exp(0.5 * jax.nn.log_sigmoid(jnp.stack([logsnr, -logsnr])))

        def excess(t, target):
            return self.sigma_fn(t) * target[0] - self.alpha_fn(t) * target[1]

        found = optimistix.root_find(
            excess,
            optimistix.Bisection(rtol=0.0, atol=0.0, flip=False),  # type: ignore[call-arg]
            0.5 * (self.lower + self.upper),
            args=target,
            options={"lower": self.lower, "upper": self.upper},
            max_steps=64,  # beyond the last bit of float64
            throw=False,
        ).value
        return jnp.where(jnp.isnan(logsnr), logsnr, found)  # bisection ends somewhere for NaN, too


def custom(
    alpha: Callable[[Scalar], Scalar],
    sigma: Callable[[Scalar], Scalar],
    lower: ArrayLike = 0.0,
    upper: ArrayLike = 1.0,
) -> Custom:
    """Make a path from two functions of t.

    Its method `time` bisects [lower, upper]. For a log-SNR that is not reached there it returns the
    nearer end.

    Args:
        alpha: scale of the data as a function of t.
        sigma: standard deviation of the noise as a function of t. sigma/alpha must grow in t.
        lower: smallest time.
        upper: largest time.

    Raises:
        ValueError: if sigma/alpha does not grow from `lower` to `upper`. Where JAX is tracing, the
            bounds are NaN instead: then the functions that use the path say so in `fault`.
    """
    ends = as_float(lower), as_float(upper)

    def angle(t: Scalar) -> Scalar:
        return jnp.arctan2(jnp.asarray(sigma(t)), jnp.asarray(alpha(t)))

    angles, *shown = numbers(jax.vmap(angle)(jnp.linspace(*ends, 65)), *ends)
    fault = check(
        (angles[1:] > angles[:-1]).all(),
        Fault.MODEL_NUMBER,
        "sigma/alpha must grow with t on [{lower}, {upper}], but does not; check both functions, "
        "and that t = lower is the data end",
        lower=shown[0],
        upper=shown[1],
    )
    return Custom(alpha, sigma, *(refuse(fault, end) for end in ends))
