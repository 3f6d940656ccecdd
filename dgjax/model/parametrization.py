"""What a network predicts, turned into the pair (x0, eps).

`x = alpha x0 + sigma eps` is one equation for two unknowns; a network's output is the second.
Each parametrization is one such equation. Everything else in the library reads the pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from dgjax.model.paths import Coefficients
from dgjax.typing import Sample, Scalar, as_float, concrete, register_dataclass

__all__ = [
    "DenoisedPrediction",
    "NoisePrediction",
    "OwnClock",
    "Pair",
    "Parametrization",
    "Preconditioned",
    "ScorePrediction",
    "VPrediction",
    "VelocityPrediction",
    "preconditioned",
    "rescale_time",
    "velocity",
]

Network = Callable[[Sample, Scalar, Any], Sample]


class Pair(NamedTuple):
    """The model's expected data x0 and noise eps at a point, with x = alpha x0 + sigma eps."""

    x0: Sample
    eps: Sample


class Parametrization(Protocol):
    """Calls the network once at (t, x) and returns the pair."""

    def __call__(
        self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any
    ) -> Pair: ...


def _call(network: Network, x: Sample, t: Scalar, cond: Any) -> Sample:
    out = network(x, t, cond)
    if out.shape != x.shape:  # it would broadcast in silence
        raise ValueError(
            f"the network returned shape {out.shape} for one sample of shape {x.shape}; they must "
            "be equal (batch with jax.vmap)"
        )
    return out


def _from_x0(x0: Sample, x: Sample, c: Coefficients) -> Pair:
    return Pair(x0, (x - c.alpha * x0) / c.sigma)


def _from_eps(eps: Sample, x: Sample, c: Coefficients) -> Pair:
    return Pair((x - c.sigma * eps) / c.alpha, eps)


@register_dataclass
@dataclass(frozen=True)
class NoisePrediction:
    """The network predicts eps."""

    def __call__(self, network, x, t, c, cond):
        return _from_eps(_call(network, x, t, cond), x, c)


@register_dataclass
@dataclass(frozen=True)
class DenoisedPrediction:
    """The network predicts x0."""

    def __call__(self, network, x, t, c, cond):
        return _from_x0(_call(network, x, t, cond), x, c)


@register_dataclass
@dataclass(frozen=True)
class ScorePrediction:
    """The network predicts the score, -eps / sigma."""

    def __call__(self, network, x, t, c, cond):
        return _from_eps(-c.sigma * _call(network, x, t, cond), x, c)


@register_dataclass
@dataclass(frozen=True)
class VPrediction:
    """The network predicts v = alpha eps - sigma x0 (for any alpha, sigma)."""

    def __call__(self, network, x, t, c, cond):
        v = _call(network, x, t, cond)
        norm = c.alpha**2 + c.sigma**2
        return Pair((c.alpha * x - c.sigma * v) / norm, (c.sigma * x + c.alpha * v) / norm)


@register_dataclass
@dataclass(frozen=True)
class VelocityPrediction:
    """The network predicts the velocity alpha' x0 + sigma' eps, as in flow matching."""

    def __call__(self, network, x, t, c, cond):
        u = _call(network, x, t, cond)
        det = c.alpha * c.dsigma - c.dalpha * c.sigma
        return Pair((c.dsigma * x - c.sigma * u) / det, (c.alpha * u - c.dalpha * x) / det)


@register_dataclass
@dataclass(frozen=True)
class Preconditioned:
    """EDM preconditioning (Karras et al. 2022, table 1). Made by `preconditioned`.

    With y = x/alpha and w = sigma/alpha the network sees (c_in y, log(w)/4) and
    x0 = c_skip y + c_out network: inputs and targets of unit variance at every noise level.
    It depends on x and w alone, so it is the same model on every path.
    """

    sigma_data: Array

    def __call__(self, network, x, t, c, cond):
        y, w = x / c.alpha, c.sigma / c.alpha
        total = jnp.sqrt(w**2 + self.sigma_data**2)
        out = _call(network, y / total, 0.25 * jnp.log(w), cond)
        skip = (self.sigma_data / total) ** 2
        x0 = skip * y + w * self.sigma_data / total * out
        # eps from the same two terms: (y - x0)/w would cancel at small w.
        eps = w / total**2 * y - self.sigma_data / total * out
        return Pair(x0, eps)


def preconditioned(sigma_data: ArrayLike = 0.5) -> Preconditioned:
    """EDM preconditioning for data of standard deviation `sigma_data`.

    Raises:
        ValueError: if it is not positive.
    """
    number = concrete(sigma_data)
    if number is not None and not (number > 0).all():
        raise ValueError(f"sigma_data must be positive, got {sigma_data}")
    return Preconditioned(as_float(sigma_data))


@register_dataclass
@dataclass(frozen=True)
class OwnClock:
    """A parametrization whose network counts time on a clock of its own. Made by `rescale_time`.

    Its velocity stays that per unit of the path's time: only what the network is told changes.
    """

    parametrization: Parametrization
    rate: Array

    def __call__(self, network, x, t, c, cond):
        return self.parametrization(
            lambda x, t, cond: network(x, self.rate * t, cond), x, t, c, cond
        )


def rescale_time(parametrization: Parametrization, rate: ArrayLike) -> OwnClock:
    """`parametrization` of a network that is told `rate` t at time t of the path.

    Raises:
        ValueError: if the rate is not positive.
    """
    number = concrete(rate)
    if number is not None and not (number > 0).all():
        raise ValueError(f"the rate of a network's clock must be positive, got {rate}")
    return OwnClock(parametrization, as_float(rate))


def velocity(rate: float = 1.0) -> Parametrization:
    """`VelocityPrediction` of a network that is told `rate` t at time t of the path.

    Flow-matching networks often count a thousand timesteps on the path's [0, 1].

    Raises:
        ValueError: if the rate is not positive.
    """
    return VelocityPrediction() if rate == 1 else rescale_time(VelocityPrediction(), rate)
