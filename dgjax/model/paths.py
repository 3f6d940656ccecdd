r"""Gaussian paths `x_t = alpha(t) x_0 + sigma(t) eps`: t grows from data to noise.

A path is a frozen dataclass registered as a pytree: its numbers are array leaves, so a changed
number never recompiles. Everything else (f, g2, log-SNR, velocity coefficients) is derived from
`alpha` and `sigma` by one `jax.jvp` in `coefficients`.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import Array, ArrayLike

from dgjax.typing import Scalar, as_float, concrete, register_dataclass

__all__ = [
    "Coefficients",
    "Path",
    "coefficients",
    "cosine",
    "custom",
    "edm",
    "logsnr",
    "rectified_flow",
    "sub_vp",
    "ve",
    "vp",
]


class Path:
    """A Gaussian path: `alpha` falls or stays, `sigma` grows, and log-SNR falls in t."""

    @abstractmethod
    def alpha(self, t: Scalar) -> Scalar:
        """Scale of the data at time t."""

    @abstractmethod
    def sigma(self, t: Scalar) -> Scalar:
        """Standard deviation of the noise at time t."""

    @abstractmethod
    def time(self, logsnr: Scalar) -> Scalar:
        """The time at which log(alpha^2 / sigma^2) equals `logsnr`."""


class Coefficients(NamedTuple):
    """A path at one time: alpha, sigma and their time derivatives."""

    alpha: Scalar
    sigma: Scalar
    dalpha: Scalar
    dsigma: Scalar

    @property
    def logsnr(self) -> Scalar:
        """log(alpha^2 / sigma^2)."""
        return 2 * (jnp.log(self.alpha) - jnp.log(self.sigma))

    @property
    def dlogsnr(self) -> Scalar:
        """Time derivative of the log-SNR (negative)."""
        return 2 * (self.dalpha / self.alpha - self.dsigma / self.sigma)

    @property
    def f(self) -> Scalar:
        """Linear drift f = d log alpha / dt. Infinite where alpha vanishes."""
        return self.dalpha / self.alpha

    @property
    def g2(self) -> Scalar:
        """Squared diffusion g^2 = d sigma^2/dt - 2 f sigma^2 = -sigma^2 d logsnr/dt."""
        return 2 * self.sigma * (self.dsigma - self.f * self.sigma)


def coefficients(path: Path, t: ArrayLike) -> Coefficients:
    """alpha, sigma and their derivatives at t, from one `jax.jvp`."""
    t = as_float(t)
    value, slope = jax.jvp(lambda t: (path.alpha(t), path.sigma(t)), (t,), (jnp.ones_like(t),))
    return Coefficients(*value, *slope)


def logsnr(path: Path, t: ArrayLike) -> Array:
    """log(alpha^2 / sigma^2) at t."""
    t = as_float(t)
    return 2 * (jnp.log(path.alpha(t)) - jnp.log(path.sigma(t)))


@register_dataclass
@dataclass(frozen=True)
class VP(Path):
    """Variance preserving, beta linear in t. Made by `vp`."""

    beta_min: Array
    beta_max: Array

    def _integral(self, t: Scalar) -> Scalar:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _time(self, integral: Scalar) -> Scalar:
        # The root of a quadratic, in the form that does not cancel near t = 0.
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * integral))

    def alpha(self, t: Scalar) -> Scalar:
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: Scalar) -> Scalar:
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def time(self, logsnr: Scalar) -> Scalar:
        return self._time(jax.nn.softplus(-logsnr))


@register_dataclass
@dataclass(frozen=True)
class SubVP(VP):
    """Sub-variance preserving: alpha of `VP`, sigma = 1 - alpha^2. Made by `sub_vp`."""

    def sigma(self, t: Scalar) -> Scalar:
        return -jnp.expm1(-self._integral(t))

    def time(self, logsnr: Scalar) -> Scalar:
        return self._time(2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * logsnr)))


@register_dataclass
@dataclass(frozen=True)
class Cosine(Path):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2). Made by `cosine`."""

    def alpha(self, t: Scalar) -> Scalar:
        return jnp.cos(0.5 * jnp.pi * t)

    def sigma(self, t: Scalar) -> Scalar:
        return jnp.sin(0.5 * jnp.pi * t)

    def time(self, logsnr: Scalar) -> Scalar:
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-0.5 * logsnr))


@register_dataclass
@dataclass(frozen=True)
class VE(Path):
    """alpha = 1, sigma geometric in t. Made by `ve`."""

    sigma_min: Array
    sigma_max: Array

    def alpha(self, t: Scalar) -> Scalar:
        return jnp.ones_like(t)

    def sigma(self, t: Scalar) -> Scalar:
        return self.sigma_min * jnp.exp(t * jnp.log(self.sigma_max / self.sigma_min))

    def time(self, logsnr: Scalar) -> Scalar:
        start = jnp.log(self.sigma_min)
        return (-0.5 * logsnr - start) / (jnp.log(self.sigma_max) - start)


@register_dataclass
@dataclass(frozen=True)
class EDM(Path):
    """alpha = 1, sigma = t^rho. Made by `edm`."""

    rho: Array

    def alpha(self, t: Scalar) -> Scalar:
        return jnp.ones_like(t)

    def sigma(self, t: Scalar) -> Scalar:
        return t**self.rho

    def time(self, logsnr: Scalar) -> Scalar:
        return jnp.exp(-0.5 * logsnr / self.rho)


@register_dataclass
@dataclass(frozen=True)
class RectifiedFlow(Path):
    """alpha = 1 - t, sigma = t. Made by `rectified_flow`."""

    def alpha(self, t: Scalar) -> Scalar:
        return 1 - t

    def sigma(self, t: Scalar) -> Scalar:
        return t

    def time(self, logsnr: Scalar) -> Scalar:
        return jax.nn.sigmoid(-0.5 * logsnr)


@register_dataclass
@dataclass(frozen=True)
class Custom(Path):
    """A path from two functions of t. Made by `custom`."""

    alpha_fn: Callable[[Scalar], Scalar] = field(metadata={"static": True})
    sigma_fn: Callable[[Scalar], Scalar] = field(metadata={"static": True})
    lower: Array
    upper: Array

    def alpha(self, t: Scalar) -> Scalar:
        return self.alpha_fn(t)

    def sigma(self, t: Scalar) -> Scalar:
        return self.sigma_fn(t)

    def time(self, logsnr: Scalar) -> Scalar:
        # sigma a - alpha s with a^2 + s^2 = 1 and a/s the ratio asked for: finite at both ends,
        # where the log-SNR is not, and rounded relative to its terms, where an angle is not.
        logsnr = as_float(logsnr)
        target = jnp.exp(0.5 * jax.nn.log_sigmoid(jnp.stack([logsnr, -logsnr])))

        def excess(t, target):
            return self.sigma_fn(t) * target[0] - self.alpha_fn(t) * target[1]

        return optimistix.root_find(
            excess,
            optimistix.Bisection(rtol=0.0, atol=0.0, flip=False),  # type: ignore[call-arg]
            0.5 * (self.lower + self.upper),
            args=target,
            options={"lower": self.lower, "upper": self.upper},
            max_steps=64,  # past the last bit of float64
            throw=False,
        ).value


def vp(beta_min: ArrayLike = 0.1, beta_max: ArrayLike = 20.0) -> VP:
    """Variance-preserving path, beta linear from `beta_min` to `beta_max` on t in (0, 1]."""
    return VP(as_float(beta_min), as_float(beta_max))


def sub_vp(beta_min: ArrayLike = 0.1, beta_max: ArrayLike = 20.0) -> SubVP:
    """Sub-variance-preserving path on t in (0, 1]."""
    return SubVP(as_float(beta_min), as_float(beta_max))


def cosine() -> Cosine:
    """Cosine path on t in (0, 1); alpha vanishes at t = 1, so t_max stays inside."""
    return Cosine()


def ve(sigma_min: ArrayLike = 0.01, sigma_max: ArrayLike = 50.0) -> VE:
    """Variance-exploding path, sigma geometric from `sigma_min` to `sigma_max` on t in [0, 1]."""
    return VE(as_float(sigma_min), as_float(sigma_max))


def edm(rho: ArrayLike = 1.0) -> EDM:
    """EDM coordinates: alpha = 1 and sigma = t^rho.

    `rho` sets the clock only: at rho = 7 a uniform grid in t is the grid uniform in sigma^(1/7).
    """
    return EDM(as_float(rho))


def rectified_flow() -> RectifiedFlow:
    """Straight path on t in (0, 1); alpha vanishes at t = 1, so t_max stays inside."""
    return RectifiedFlow()


def custom(
    alpha: Callable[[Scalar], Scalar],
    sigma: Callable[[Scalar], Scalar],
    lower: ArrayLike = 0.0,
    upper: ArrayLike = 1.0,
) -> Custom:
    """A path from two functions of t whose ratio sigma/alpha grows on [lower, upper].

    Its `time` finds the root by bisection inside [lower, upper], and is the nearer end for a
    log-SNR not reached there.

    Raises:
        ValueError: if sigma/alpha does not grow from `lower` to `upper`.
    """
    path = Custom(alpha, sigma, as_float(lower), as_float(upper))
    times = jnp.linspace(path.lower, path.upper, 65)
    angle = concrete(jax.vmap(lambda t: jnp.arctan2(path.sigma(t), path.alpha(t)))(times))
    if angle is not None and not (angle[1:] > angle[:-1]).all():
        raise ValueError(
            f"sigma/alpha must grow with t on [{lower}, {upper}], and here it does not; "
            "check that t = lower is the data end, and that both functions are right"
        )
    return path
