r"""Noise terms of the sampler's SDE, in the Stratonovich or in the Ito sense.

A Stratonovich term returns its increment dx, which is linear in (dt, dW). The ordinary chain rule
holds for it. So with dx the whole step, drift and noise, the log-density gains

    d log p_t = -div u dt + <dx - u dt, s>.                                           (B)

This is identity (B) of the page Concepts. An Ito term returns one Euler step together with the
gain of the log-density. It is meant for methods with one evaluation per step.

Time runs from noise to data, so dt < 0. Each element of dW has variance |dt|. The height h sets the
strength of the noise, phi = h g, and may depend on the log-SNR.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from dgjax.guidance.schedules import Schedule, Window, schedule, window
from dgjax.model.faults import require
from dgjax.model.local import Local
from dgjax.typing import Sample, Scalar, as_float, inner, register_dataclass, safe_sqrt

__all__ = [
    "ItoNoise",
    "Langevin",
    "LevelSetNoise",
    "NoiseMatched",
    "PublishedStochastic",
    "ReverseSDEIto",
    "StratonovichNoise",
    "churn",
    "level_set_noise",
    "noise_matched",
    "published_stochastic",
    "reverse_sde",
    "reverse_sde_ito",
]

Height = Callable[[Scalar], Scalar]


class StratonovichNoise(Protocol):
    """A noise term for Stratonovich solvers, such as Heun and Runge-Kutta."""

    def increment(self, local: Local, dt: Scalar, dW: Sample) -> Sample:
        """Return what the term adds to the step v dt.

        Args:
            local: the model at the current point.
            dt: time step, negative.
            dW: Brownian increment, of the shape of one sample.

        Returns:
            An increment of the state, linear in (dt, dW).
        """
        ...


@runtime_checkable
class ItoNoise(Protocol):
    """A noise term for Euler steps with one evaluation each."""

    def step(self, drift: Sample, local: Local, dt: Scalar, dW: Sample) -> tuple[Sample, Array]:
        """Return the whole step of the state and the gains of its log-densities.

        Args:
            drift: the guided drift v.
            local: the model at the current point.
            dt: time step, negative.
            dW: Brownian increment, of the shape of one sample.

        Returns:
            The increment dx of the state, drift included, and `(n,)` gains in nats.
        """
        ...


def _height(value: ArrayLike | Schedule | Window) -> Height:
    return value if isinstance(value, Window) else schedule(value)


def _diffusion(height: Height, local: Local) -> Scalar:
    """Return phi = height g."""
    return height(local.logsnr) * safe_sqrt(jnp.maximum(local.g2, 0))


def _project(z: Sample, local: Local) -> Sample:
    """Return P z = z - s <s, z>/|s|^2."""
    score = local.nonzero_score
    return z - score * (inner(score, z) / local.score_norm2)


@register_dataclass
@dataclass(frozen=True)
class LevelSetNoise:
    """Stratonovich noise phi P o dW along the level set of log p_t. Made by `level_set_noise`.

    P = I - s s^T/|s|^2 projects to the tangent space of the level set. Since P s = 0, the noise
    does not change the rate of the log-density, by (B). No trace and no Jacobian product is needed.

    Attributes:
        height: phi/g as a function of log-SNR.
    """

    height: Height

    def increment(self, local: Local, dt: Scalar, dW: Sample) -> Sample:
        """Return phi P dW."""
        del dt
        return _diffusion(self.height, local) * _project(dW, local)


def level_set_noise(height: ArrayLike | Schedule | Window = 1.0) -> LevelSetNoise:
    """Make noise along the level sets of log p_t: stochastic density guidance.

    The SDE dx = v dt + phi P o dW in the Stratonovich sense, with P = I - s s^T/|s|^2 and
    phi = height g. `published_stochastic` is the Ito form of Density Guidance (arXiv 2502.05807).

    Args:
        height: phi/g: a number, a `Schedule` or a `Window` in log-SNR.

    Returns:
        A noise term for Stratonovich solvers and for `LevelSetEuler`.
    """
    return LevelSetNoise(_height(height))


@register_dataclass
@dataclass(frozen=True)
class Langevin:
    """Noise phi dW with the drift -phi^2/2 s dt, which together keep p_t (dt < 0).

    The noise phi dW does not depend on x, so its Ito and Stratonovich senses agree. Made by
    `reverse_sde` or `churn`.

    Attributes:
        height: phi/g as a function of log-SNR.
    """

    height: Height

    def increment(self, local: Local, dt: Scalar, dW: Sample) -> Sample:
        """Return -phi^2/2 s dt + phi dW."""
        phi = _diffusion(self.height, local)
        return -0.5 * phi**2 * local.score * dt + phi * dW


def reverse_sde(height: ArrayLike | Schedule | Window = 1.0) -> Langevin:
    """Make the noise of the reverse SDE, which keeps the marginals p_t.

    Without guides the SDE is dx = (f x - g^2/2 (1 + height^2) s) dt + height g dW. Height 1 is the
    reverse SDE dx = (f x - g^2 s) dt + g dW. The log-density is tracked by (B).

    Args:
        height: phi/g: a number, a `Schedule` or a `Window` in log-SNR.

    Returns:
        A noise term for Stratonovich solvers.
    """
    return Langevin(_height(height))


def churn(
    amount: ArrayLike = 1.0, *, low: ArrayLike = -jnp.inf, high: ArrayLike = jnp.inf
) -> Langevin:
    """Make Langevin noise of a given variance inside a window of log-SNR.

    A continuous form of the churn of EDM (Karras et al. 2022, arXiv 2206.00364). Per step it adds
    and removes the variance `amount` g^2 |dt|. It equals `reverse_sde` of the window of height
    sqrt(`amount`), so amount 1 is the reverse SDE.

    Args:
        amount: variance relative to the reverse SDE, not negative.
        low: smallest log-SNR at which the noise acts.
        high: log-SNR at which the noise ends: it acts while `low` <= log-SNR < `high`.

    Returns:
        A noise term for Stratonovich solvers.

    Raises:
        ValueError: if the amount is negative or `low` >= `high`.
    """
    amount = require("amount", as_float(amount), "not be negative", lambda amount: amount >= 0)
    return Langevin(window(jnp.sqrt(amount), low=low, high=high))


def _gains(drift: Sample, local: Local, dt: Scalar) -> Array:
    """Return the gain of identity (A) over dt for each of the divergence estimates, `(n,)`."""
    return (inner(drift - local.velocity, local.score) - local.divergences) * dt


@register_dataclass
@dataclass(frozen=True)
class NoiseMatched:
    """Ito step of stochastic density guidance that uses its own noise as the probe.

    With z = P dW the step is dx = v dt + phi z - phi^2/2 (z^T H z) s/|s|^2, where H is the
    Hessian of log p_t. It takes one Jacobian product and has pathwise order 1. Made by
    `noise_matched`.

    Attributes:
        height: phi/g as a function of log-SNR.
    """

    height: Height

    def step(self, drift: Sample, local: Local, dt: Scalar, dW: Sample) -> tuple[Sample, Array]:
        """Return the whole step of the state and the `(n,)` gains of its log-densities."""
        assert local.hvp is not None  # it is None only in stored copies
        phi = _diffusion(self.height, local)
        z = _project(dW, local)
        bend = 0.5 * phi**2 * inner(z, local.hvp(z)) / local.score_norm2
        return drift * dt + phi * z - bend * local.score, _gains(drift, local, dt)


def noise_matched(height: ArrayLike | Schedule | Window = 1.0) -> NoiseMatched:
    """Make stochastic density guidance for Euler steps, with an order-1 Ito correction.

    The correction -phi^2/2 (z^T H z) s/|s|^2 uses the projected noise z = P dW of the step itself
    in place of an independent probe.

    Args:
        height: phi/g: a number, a `Schedule` or a `Window` in log-SNR.

    Returns:
        A noise term for Euler steps.
    """
    return NoiseMatched(_height(height))


@register_dataclass
@dataclass(frozen=True)
class PublishedStochastic:
    """Ito step of stochastic density guidance with the published correction.

    The correction is phi^2/2 Lap log p s/|s|^2 dt, with the Laplacian estimated by the divergence
    estimator of the solve. Made by `published_stochastic`.

    Attributes:
        height: phi/g as a function of log-SNR.
    """

    height: Height

    def step(self, drift: Sample, local: Local, dt: Scalar, dW: Sample) -> tuple[Sample, Array]:
        """Return the whole step of the state and the `(n,)` gains of its log-densities."""
        phi = _diffusion(self.height, local)
        bend = 0.5 * phi**2 * local.laplacian / local.score_norm2
        dx = (drift + bend * local.score) * dt + phi * _project(dW, local)
        return dx, _gains(drift, local, dt)


def published_stochastic(height: ArrayLike | Schedule | Window = 1.0) -> PublishedStochastic:
    """Make stochastic density guidance in the Ito form of Density Guidance (arXiv 2502.05807).

    Kept for comparison. The correction takes the whole Laplacian although the noise has no
    component along the score, so the error of the tracked log-density does not go to 0 with the
    step. Use `level_set_noise` instead. The paper estimates the Laplacian with one Hutchinson
    probe; here the divergence estimator of the solve does.

    Args:
        height: phi/g: a number, a `Schedule` or a `Window` in log-SNR.

    Returns:
        A noise term for Euler steps.
    """
    return PublishedStochastic(_height(height))


@register_dataclass
@dataclass(frozen=True)
class ReverseSDEIto:
    """Euler-Maruyama step of the reverse SDE with a log-density that needs no divergence.

    The step is dx = (v - g^2/2 s) dt + g dW, and the log-density changes by
    d log p = (<v - u, s> - D f - g^2/2 |s|^2) dt + g <s, dW>. Made by `reverse_sde_ito`.
    """

    def step(self, drift: Sample, local: Local, dt: Scalar, dW: Sample) -> tuple[Sample, Array]:
        """Return the whole step of the state and the `(n,)` gains of its log-densities."""
        g = safe_sqrt(jnp.maximum(local.g2, 0))
        dx = (drift - 0.5 * local.g2 * local.score) * dt + g * dW
        rate = inner(drift - local.velocity, local.score) - local.x.size * local.f
        rate = rate - 0.5 * local.g2 * jnp.sum(local.score**2)
        gain = rate * dt + g * inner(local.score, dW)
        return dx, jnp.broadcast_to(gain, local.divergences.shape)


def reverse_sde_ito() -> ReverseSDEIto:
    """Make the reverse SDE for Euler-Maruyama steps, tracked without divergences.

    The tracking is that of Cartoonists (arXiv 2411.01293): in the Ito sense the Laplacian terms
    cancel, d log p_t = -(D f + g^2/2 |s|^2) dt + g <s, dW>. It is cheap, but its bias is of the
    order of the step. `reverse_sde` with a Stratonovich solver is more accurate.

    Returns:
        A noise term for Euler steps.
    """
    return ReverseSDEIto()
