r"""Stochastic terms, each saying in which sense it is meant.

A Stratonovich term gives its increment dx, linear in (dt, dW). The ordinary chain rule holds, so
with all of the step in one dx the log-density gains

    d log p_t = -div u dt + <dx - u dt, s>.                                           (B)

An Ito term gives one Euler step with its own gain, for methods made for one evaluation a step.
Time runs from noise to data, dt < 0, and dW has variance |dt| per element.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from dgjax.guidance.schedules import Schedule, Window, schedule, window
from dgjax.model.field import Local
from dgjax.typing import Sample, Scalar, as_float, concrete, inner, register_dataclass

__all__ = [
    "ItoNoise",
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
    """A stochastic term for Stratonovich solvers (Heun, Runge-Kutta)."""

    def increment(self, local: Local, dt: Scalar, dW: Sample) -> Sample:
        """What it adds to the step v dt; linear in (dt, dW)."""
        ...


@runtime_checkable
class ItoNoise(Protocol):
    """A stochastic term for one-evaluation Euler steps."""

    def step(self, drift: Sample, local: Local, dt: Scalar, dW: Sample) -> tuple[Sample, Array]:
        """The whole step dx of the state, and the (n,) gains of its log-densities in nats."""
        ...


def _height(value: ArrayLike | Schedule | Window) -> Height:
    return value if isinstance(value, Window) else schedule(value)


def _diffusion(height: Height, local: Local) -> Scalar:
    return height(local.logsnr) * jnp.sqrt(jnp.maximum(local.g2, 0))


def _project(z: Sample, local: Local) -> Sample:
    """P z = z - s <s, z>/|s|^2."""
    return z - local.score * (inner(local.score, z) / local.score_norm2)


@register_dataclass
@dataclass(frozen=True)
class LevelSetNoise:
    """phi P o dW with phi = height g: noise only along the level set of log p_t.

    Stochastic density guidance in Stratonovich form: P s = 0, so the log-density keeps the rate
    of the drift with no correction, no trace and no Jacobian product. Made by `level_set_noise`.
    """

    height: Height

    def increment(self, local: Local, dt: Scalar, dW: Sample) -> Sample:
        del dt
        return _diffusion(self.height, local) * _project(dW, local)


def level_set_noise(height: ArrayLike | Schedule | Window = 1.0) -> LevelSetNoise:
    """Stochastic density guidance: `height` is phi/g, a number, a schedule or a window."""
    return LevelSetNoise(_height(height))


@register_dataclass
@dataclass(frozen=True)
class Langevin:
    """phi dW with the drift -phi^2/2 s dt (dt < 0) that keeps p_t. phi = height g.

    The matrix of the noise does not depend on x: Ito and Stratonovich sense agree for the state.
    Made by `reverse_sde` or `churn`.
    """

    height: Height

    def increment(self, local: Local, dt: Scalar, dW: Sample) -> Sample:
        phi = _diffusion(self.height, local)
        return -0.5 * phi**2 * local.score * dt + phi * dW


def reverse_sde(height: ArrayLike | Schedule | Window = 1.0) -> Langevin:
    """The reverse SDE at height 1: dx = (f x - g^2 s) dt + g dW. Tracked by (B)."""
    return Langevin(_height(height))


def churn(
    amount: ArrayLike = 1.0, *, low: ArrayLike = -jnp.inf, high: ArrayLike = jnp.inf
) -> Langevin:
    """EDM-style churn: Langevin noise of strength `amount` inside a window of log-SNR.

    Adds and removes the variance `amount` g^2 |dt|: amount 1 is the reverse SDE.
    """
    amount = as_float(amount)
    numbers = concrete(amount)
    if numbers is not None and not numbers >= 0:
        raise ValueError(f"amount must not be negative, got {numbers:g}")
    return Langevin(window(jnp.sqrt(amount), low=low, high=high))


def _tracked(drift: Sample, local: Local, dt: Scalar) -> Array:
    """The gain of (A) over dt, for each of the divergence estimates."""
    return (inner(drift - local.velocity, local.score) - local.divergences) * dt


@register_dataclass
@dataclass(frozen=True)
class NoiseMatched:
    """Ito step of stochastic density guidance with the step's own noise as the probe.

    With z = P dW: dx = v dt + phi z - phi^2/2 (z^T H z) s/|s|^2. One Jacobian product; pathwise
    order 1. Made by `noise_matched`.
    """

    height: Height

    def step(self, drift: Sample, local: Local, dt: Scalar, dW: Sample) -> tuple[Sample, Array]:
        assert local.hvp is not None  # a step evaluates where it stands
        phi = _diffusion(self.height, local)
        z = _project(dW, local)
        bend = 0.5 * phi**2 * inner(z, local.hvp(z)) / local.score_norm2
        return drift * dt + phi * z - bend * local.score, _tracked(drift, local, dt)


def noise_matched(height: ArrayLike | Schedule | Window = 1.0) -> NoiseMatched:
    """Stochastic density guidance by one-evaluation Euler steps, noise-matched Ito form."""
    return NoiseMatched(_height(height))


@register_dataclass
@dataclass(frozen=True)
class PublishedStochastic:
    """Stochastic density guidance as published: Ito, correction phi^2/2 Lap log p s/|s|^2 dt.

    The Laplacian is `local`'s own estimate ([DG] use one Hutchinson probe). Kept for comparison:
    it drops the normal part of the trace and levels off at a bias. Made by
    `published_stochastic`.
    """

    height: Height

    def step(self, drift: Sample, local: Local, dt: Scalar, dW: Sample) -> tuple[Sample, Array]:
        phi = _diffusion(self.height, local)
        bend = 0.5 * phi**2 * local.laplacian / local.score_norm2
        dx = (drift + bend * local.score) * dt + phi * _project(dW, local)
        return dx, _tracked(drift, local, dt)


def published_stochastic(height: ArrayLike | Schedule | Window = 1.0) -> PublishedStochastic:
    """Stochastic density guidance in the paper's Ito form."""
    return PublishedStochastic(_height(height))


@register_dataclass
@dataclass(frozen=True)
class ReverseSDEIto:
    """Euler-Maruyama of the reverse SDE with the tracking of [HD], which needs no divergence.

    dx = (v - g^2/2 s) dt + g dW and d log p = -(D f + g^2/2 |s|^2) dt + g <s, dW>, for v = u;
    a guided v adds <v - u, s> dt. Made by `reverse_sde_ito`.
    """

    def step(self, drift: Sample, local: Local, dt: Scalar, dW: Sample) -> tuple[Sample, Array]:
        g = jnp.sqrt(jnp.maximum(local.g2, 0))
        dx = (drift - 0.5 * local.g2 * local.score) * dt + g * dW
        rate = inner(drift - local.velocity, local.score) - local.x.size * local.f
        rate = rate - 0.5 * local.g2 * jnp.sum(local.score**2)
        gain = rate * dt + g * inner(local.score, dW)
        return dx, jnp.broadcast_to(gain, local.divergences.shape)


def reverse_sde_ito() -> ReverseSDEIto:
    """Euler-Maruyama steps of the reverse SDE, log-density tracked without divergences."""
    return ReverseSDEIto()
