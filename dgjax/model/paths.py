"""Gaussian paths x_t = alpha(t) x_0 + sigma(t) eps; t grows from data to noise.

A path is a frozen dataclass registered as a pytree. Its numbers are array leaves, so a changed
number never recompiles. `coefficients` derives f, g2, the log-SNR and the coefficients of the
velocity from `alpha` and `sigma` by one `jax.jvp`.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from dgjax.typing import Scalar, as_float, register_dataclass

__all__ = [
    "Coefficients",
    "Path",
    "coefficients",
    "cosine",
    "edm",
    "logsnr",
    "rectified_flow",
    "sub_vp",
    "ve",
    "vp",
]


class Path:
    """Base class of Gaussian paths.

    As t grows, alpha does not grow, sigma grows and the log-SNR log(alpha^2/sigma^2) falls.
    A subclass is a frozen dataclass, decorated with `register_dataclass`, with three methods.
    """

    @abstractmethod
    def alpha(self, t: Scalar) -> Scalar:
        """Return the scale of the data at time t."""

    @abstractmethod
    def sigma(self, t: Scalar) -> Scalar:
        """Return the standard deviation of the noise at time t."""

    @abstractmethod
    def time(self, logsnr: Scalar) -> Scalar:
        """Return the time at which the log-SNR log(alpha^2/sigma^2) equals `logsnr`."""


class Coefficients(NamedTuple):
    """The coefficients of a path at one time. Made by `coefficients`.

    Attributes:
        alpha: scale of the data.
        sigma: standard deviation of the noise.
        dalpha: time derivative of alpha.
        dsigma: time derivative of sigma.
    """

    alpha: Scalar
    sigma: Scalar
    dalpha: Scalar
    dsigma: Scalar

    @property
    def logsnr(self) -> Scalar:
        """Log-SNR log(alpha^2/sigma^2)."""
        return 2 * (jnp.log(self.alpha) - jnp.log(self.sigma))

    @property
    def dlogsnr(self) -> Scalar:
        """Time derivative of the log-SNR, negative."""
        return 2 * (self.dalpha / self.alpha - self.dsigma / self.sigma)

    @property
    def f(self) -> Scalar:
        """Linear drift f = d log alpha/dt; infinite where alpha vanishes."""
        return self.dalpha / self.alpha

    @property
    def g2(self) -> Scalar:
        """Squared diffusion g^2 = d sigma^2/dt - 2 f sigma^2 = -sigma^2 d logsnr/dt."""
        return 2 * self.sigma * (self.dsigma - self.f * self.sigma)


def coefficients(path: Path, t: ArrayLike) -> Coefficients:
    """Return alpha, sigma and their time derivatives at t, from one `jax.jvp`."""
    t = as_float(t)
    value, slope = jax.jvp(lambda t: (path.alpha(t), path.sigma(t)), (t,), (jnp.ones_like(t),))
    return Coefficients(*value, *slope)


def logsnr(path: Path, t: ArrayLike) -> Array:
    """Return the log-SNR log(alpha^2/sigma^2) of `path` at t."""
    t = as_float(t)
    return 2 * (jnp.log(path.alpha(t)) - jnp.log(path.sigma(t)))


@register_dataclass
@dataclass(frozen=True)
class VP(Path):
    """The variance-preserving path with beta linear in t. Made by `vp`.

    Attributes:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
    """

    beta_min: Array
    beta_max: Array

    def _integral(self, t: Scalar) -> Scalar:
        """Return the integral of beta from 0 to t."""
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _time(self, integral: Scalar) -> Scalar:
        # The root of a quadratic, in the form that does not cancel near t = 0.
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * integral))

    def alpha(self, t: Scalar) -> Scalar:
        """Return the scale of the data at time t."""
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: Scalar) -> Scalar:
        """Return the standard deviation of the noise at time t."""
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def time(self, logsnr: Scalar) -> Scalar:
        """Return the time at which the log-SNR equals `logsnr`."""
        return self._time(jax.nn.softplus(-logsnr))


@register_dataclass
@dataclass(frozen=True)
class SubVP(VP):
    """The sub-variance-preserving path: alpha of `VP`, sigma = 1 - alpha^2. Made by `sub_vp`."""

    def sigma(self, t: Scalar) -> Scalar:
        """Return the standard deviation of the noise at time t."""
        return -jnp.expm1(-self._integral(t))

    def time(self, logsnr: Scalar) -> Scalar:
        """Return the time at which the log-SNR equals `logsnr`."""
        return self._time(2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * logsnr)))


@register_dataclass
@dataclass(frozen=True)
class Cosine(Path):
    """The path alpha = cos(pi t/2), sigma = sin(pi t/2). Made by `cosine`."""

    def alpha(self, t: Scalar) -> Scalar:
        """Return the scale of the data at time t."""
        return jnp.cos(0.5 * jnp.pi * t)

    def sigma(self, t: Scalar) -> Scalar:
        """Return the standard deviation of the noise at time t."""
        return jnp.sin(0.5 * jnp.pi * t)

    def time(self, logsnr: Scalar) -> Scalar:
        """Return the time at which the log-SNR equals `logsnr`."""
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-0.5 * logsnr))


@register_dataclass
@dataclass(frozen=True)
class VE(Path):
    """The variance-exploding path: alpha = 1, log sigma linear in t. Made by `ve`.

    Attributes:
        sigma_min: sigma at t = 0.
        sigma_max: sigma at t = 1.
    """

    sigma_min: Array
    sigma_max: Array

    def alpha(self, t: Scalar) -> Scalar:
        """Return the scale of the data at time t."""
        return jnp.ones_like(t)

    def sigma(self, t: Scalar) -> Scalar:
        """Return the standard deviation of the noise at time t."""
        return self.sigma_min * jnp.exp(t * jnp.log(self.sigma_max / self.sigma_min))

    def time(self, logsnr: Scalar) -> Scalar:
        """Return the time at which the log-SNR equals `logsnr`."""
        start = jnp.log(self.sigma_min)
        return (-0.5 * logsnr - start) / (jnp.log(self.sigma_max) - start)


@register_dataclass
@dataclass(frozen=True)
class EDM(Path):
    """The path alpha = 1, sigma = t^rho. Made by `edm`.

    Attributes:
        rho: exponent.
    """

    rho: Array

    def alpha(self, t: Scalar) -> Scalar:
        """Return the scale of the data at time t."""
        return jnp.ones_like(t)

    def sigma(self, t: Scalar) -> Scalar:
        """Return the standard deviation of the noise at time t."""
        return t**self.rho

    def time(self, logsnr: Scalar) -> Scalar:
        """Return the time at which the log-SNR equals `logsnr`."""
        return jnp.exp(-0.5 * logsnr / self.rho)


@register_dataclass
@dataclass(frozen=True)
class RectifiedFlow(Path):
    """The path alpha = 1 - t, sigma = t. Made by `rectified_flow`."""

    def alpha(self, t: Scalar) -> Scalar:
        """Return the scale of the data at time t."""
        return 1 - t

    def sigma(self, t: Scalar) -> Scalar:
        """Return the standard deviation of the noise at time t."""
        return t

    def time(self, logsnr: Scalar) -> Scalar:
        """Return the time at which the log-SNR equals `logsnr`."""
        return jax.nn.sigmoid(-0.5 * logsnr)


def vp(beta_min: ArrayLike = 0.1, beta_max: ArrayLike = 20.0) -> VP:
    """Make the variance-preserving path on t in (0, 1] (Song et al. 2021, arXiv 2011.13456).

    alpha^2 = exp(-integral of beta from 0 to t) and sigma^2 = 1 - alpha^2.

    Args:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1; beta is linear in between.
    """
    return VP(as_float(beta_min), as_float(beta_max))


def sub_vp(beta_min: ArrayLike = 0.1, beta_max: ArrayLike = 20.0) -> SubVP:
    """Make the sub-variance-preserving path on t in (0, 1] (Song et al. 2021, arXiv 2011.13456).

    alpha is that of `vp` and sigma = 1 - alpha^2.

    Args:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1; beta is linear in between.
    """
    return SubVP(as_float(beta_min), as_float(beta_max))


def cosine() -> Cosine:
    """Make the cosine path alpha = cos(pi t/2), sigma = sin(pi t/2) on t in (0, 1).

    alpha vanishes at t = 1, so t_max must be below 1.
    """
    return Cosine()


def ve(sigma_min: ArrayLike = 0.01, sigma_max: ArrayLike = 50.0) -> VE:
    """Make the variance-exploding path on t in [0, 1] (Song et al. 2021, arXiv 2011.13456).

    alpha = 1 and log sigma is linear in t.

    Args:
        sigma_min: sigma at t = 0.
        sigma_max: sigma at t = 1.
    """
    return VE(as_float(sigma_min), as_float(sigma_max))


def edm(rho: ArrayLike = 1.0) -> EDM:
    """Make the path alpha = 1, sigma = t^rho of EDM (Karras et al. 2022, arXiv 2206.00364).

    Args:
        rho: exponent. With rho = 1 the time is sigma itself. With rho = 7 a uniform grid in t is
            uniform in sigma^(1/7).
    """
    return EDM(as_float(rho))


def rectified_flow() -> RectifiedFlow:
    """Make the straight path alpha = 1 - t, sigma = t on t in (0, 1).

    Rectified flow and flow matching use it (Liu et al. 2022, arXiv 2209.03003). alpha vanishes at
    t = 1, so t_max must be below 1.
    """
    return RectifiedFlow()
