"""Parametrizations: convert the output of a network to the pair (x0, eps).

The pair is the expected data x0 = E[x_0 | x_t = x] and the expected noise eps. The equation
x = alpha x0 + sigma eps relates the two. The output of the network is a second equation, one for
each parametrization. All other code reads the pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from dgjax.model.faults import require
from dgjax.model.paths import Coefficients
from dgjax.typing import Sample, Scalar, as_float, register_dataclass

__all__ = [
    "AffineTime",
    "DenoisedPrediction",
    "Network",
    "NoisePrediction",
    "Pair",
    "Parametrization",
    "Preconditioned",
    "RescaledTime",
    "ScorePrediction",
    "VEPreconditioned",
    "VPrediction",
    "VelocityPrediction",
    "affine_time",
    "preconditioned",
    "rescale_time",
    "velocity_prediction",
]

Network = Callable[[Sample, Scalar, Any], Sample]


class Pair(NamedTuple):
    """The expected data and noise at a point x, with x = alpha x0 + sigma eps.

    Attributes:
        x0: E[x_0 | x_t = x], of the shape of x.
        eps: E[eps | x_t = x], of the shape of x.
    """

    x0: Sample
    eps: Sample


class Parametrization(Protocol):
    """A conversion from the output of a network to the pair (x0, eps)."""

    def __call__(self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any) -> Pair:
        """Call the network once and return the pair.

        Args:
            network: function `(x, t, cond) -> out` of one sample.
            x: one sample, of any shape.
            t: a time on the path of the network.
            c: the coefficients of this path at t.
            cond: condition of the network.
        """
        ...


def _call(network: Network, x: Sample, t: Scalar, cond: Any) -> Sample:
    out = network(x, t, cond)
    if not hasattr(out, "shape"):
        raise ValueError(
            f"the network returned a {type(out).__name__}, not one array: wrap it in a function "
            "that returns the prediction alone, such as lambda x, t, cond: network(x, t, cond)[0]"
        )
    if out.shape != x.shape:  # other shapes might broadcast silently
        raise ValueError(
            f"the network returned shape {out.shape} for one sample of shape {x.shape}, but both "
            "must be equal; the network gets one sample without a batch axis (jax.vmap adds one)"
        )
    return out


def _from_x0(x0: Sample, x: Sample, c: Coefficients) -> Pair:
    return Pair(x0, (x - c.alpha * x0) / c.sigma)


def _from_eps(eps: Sample, x: Sample, c: Coefficients) -> Pair:
    return Pair((x - c.sigma * eps) / c.alpha, eps)


@register_dataclass
@dataclass(frozen=True)
class NoisePrediction:
    """The network predicts the noise eps."""

    def __call__(self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any) -> Pair:
        """Call the network once and return the pair."""
        return _from_eps(_call(network, x, t, cond), x, c)


@register_dataclass
@dataclass(frozen=True)
class DenoisedPrediction:
    """The network predicts the denoised sample x0."""

    def __call__(self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any) -> Pair:
        """Call the network once and return the pair."""
        return _from_x0(_call(network, x, t, cond), x, c)


@register_dataclass
@dataclass(frozen=True)
class ScorePrediction:
    """The network predicts the score, -eps / sigma."""

    def __call__(self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any) -> Pair:
        """Call the network once and return the pair."""
        return _from_eps(-c.sigma * _call(network, x, t, cond), x, c)


@register_dataclass
@dataclass(frozen=True)
class VPrediction:
    """The network predicts v = alpha eps - sigma x0 (Salimans and Ho 2022, arXiv 2202.00512).

    alpha and sigma may have any values; alpha^2 + sigma^2 need not be 1.
    """

    def __call__(self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any) -> Pair:
        """Call the network once and return the pair."""
        v = _call(network, x, t, cond)
        norm = c.alpha**2 + c.sigma**2
        return Pair((c.alpha * x - c.sigma * v) / norm, (c.sigma * x + c.alpha * v) / norm)


@register_dataclass
@dataclass(frozen=True)
class VelocityPrediction:
    """The network predicts the velocity u = alpha' x0 + sigma' eps, as in flow matching.

    The velocity is per unit of the time of the path.
    """

    def __call__(self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any) -> Pair:
        """Call the network once and return the pair."""
        u = _call(network, x, t, cond)
        det = c.alpha * c.dsigma - c.dalpha * c.sigma
        return Pair((c.dsigma * x - c.sigma * u) / det, (c.alpha * u - c.dalpha * x) / det)


@register_dataclass
@dataclass(frozen=True)
class Preconditioned:
    """EDM preconditioning (Karras et al. 2022, arXiv 2206.00364, table 1).

    With y = x/alpha and w = sigma/alpha the network is called with (c_in y, log(w)/4), and
    x0 = c_skip y + c_out network. Its inputs and targets have unit variance at every noise level.
    Only y and w enter, so this is the same model on every path. Made by `preconditioned`.

    Attributes:
        sigma_data: standard deviation of the data.
    """

    sigma_data: Array

    def __call__(self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any) -> Pair:
        """Call the network once and return the pair."""
        y, w = x / c.alpha, c.sigma / c.alpha
        total = jnp.sqrt(w**2 + self.sigma_data**2)
        out = _call(network, y / total, 0.25 * jnp.log(w), cond)
        skip = (self.sigma_data / total) ** 2
        x0 = skip * y + w * self.sigma_data / total * out
        # From the same two terms, because (y - x0)/w loses digits at small w.
        eps = w / total**2 * y - self.sigma_data / total * out
        return Pair(x0, eps)


def preconditioned(sigma_data: ArrayLike = 0.5) -> Preconditioned:
    """Make the EDM preconditioning for data of standard deviation `sigma_data`.

    Args:
        sigma_data: standard deviation of the data, positive.

    Returns:
        A parametrization for `field`.

    Raises:
        ValueError: if `sigma_data` is not positive.
    """
    sigma_data = as_float(sigma_data)
    return Preconditioned(require("sigma_data", sigma_data, "be positive", lambda n: n > 0))


@register_dataclass
@dataclass(frozen=True)
class VEPreconditioned:
    """The preconditioning of variance-exploding networks (arXiv 2206.00364, table 1, column VE).

    With y = x/alpha and w = sigma/alpha the network is called with (y, log(w/2)), and it predicts
    -eps: x0 = y + w network. Only y and w enter, so this is the same model on every path.
    """

    def __call__(self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any) -> Pair:
        """Call the network once and return the pair."""
        y, w = x / c.alpha, c.sigma / c.alpha
        out = _call(network, y, jnp.log(0.5 * w), cond)
        return Pair(y + w * out, -out)


@register_dataclass
@dataclass(frozen=True)
class RescaledTime:
    """A parametrization whose network is called with the time `rate` t. Made by `rescale_time`.

    Only the time argument of the network changes. A predicted velocity is still per unit of the
    time of the path.

    Attributes:
        parametrization: what the network predicts.
        rate: time of the network per unit of the time of the path.
    """

    parametrization: Parametrization
    rate: Array

    def __call__(self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any) -> Pair:
        """Call the network once and return the pair."""
        return self.parametrization(
            lambda x, t, cond: network(x, self.rate * t, cond), x, t, c, cond
        )


def rescale_time(parametrization: Parametrization, rate: ArrayLike) -> RescaledTime:
    """Make a parametrization whose network is called with the time `rate` t.

    Args:
        parametrization: what the network predicts.
        rate: time of the network per unit of the time of the path, positive.

    Returns:
        A parametrization for `field`.

    Raises:
        ValueError: if `rate` is not positive.
    """
    rate = require("rate", as_float(rate), "be positive", lambda number: number > 0)
    return RescaledTime(parametrization, rate)


@register_dataclass
@dataclass(frozen=True)
class AffineTime:
    """A parametrization in the time s = `offset` + `rate` t. Made by `affine_time`.

    The network is called with s, and a predicted velocity is per unit of s: dx/ds = u / `rate`.

    Attributes:
        parametrization: what the network predicts.
        rate: ds/dt.
        offset: s at t = 0.
    """

    parametrization: Parametrization
    rate: Array
    offset: Array

    def __call__(self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any) -> Pair:
        """Call the network once and return the pair."""
        own = c._replace(dalpha=c.dalpha / self.rate, dsigma=c.dsigma / self.rate)
        return self.parametrization(network, x, self.offset + self.rate * t, own, cond)


def affine_time(
    parametrization: Parametrization, rate: ArrayLike, offset: ArrayLike = 0.0
) -> AffineTime:
    """Make a parametrization whose network has the time s = `offset` + `rate` t.

    The network is called with s. Unlike with `rescale_time`, a predicted velocity is per unit of s,
    too: dx/ds = u / `rate`. With `rate` -1 and `offset` 1 it is that of a flow from noise at s = 0
    to data at s = 1.

    Args:
        parametrization: what the network predicts.
        rate: ds/dt, not 0. A negative rate is a reversed time.
        offset: s at t = 0.

    Returns:
        A parametrization for `field`.

    Raises:
        ValueError: if `rate` is 0.
    """
    rate = require("rate", as_float(rate), "not be 0", lambda number: number != 0)
    return AffineTime(parametrization, rate, as_float(offset))


def velocity_prediction(rate: float = 1.0) -> Parametrization:
    """Make a `VelocityPrediction` whose network is called with the time `rate` t.

    Flow-matching networks often take a timestep from 0 to 1000 for the times 0 to 1 of the path:
    their rate is 1000.

    Args:
        rate: time of the network per unit of the time of the path, positive.

    Returns:
        A parametrization for `field`.

    Raises:
        ValueError: if `rate` is not positive.
    """
    return VelocityPrediction() if rate == 1 else rescale_time(VelocityPrediction(), rate)
