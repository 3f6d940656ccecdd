"""Energy models: the network gives a scalar, and the score is its gradient.

With y = x/alpha and w = sigma/alpha the log-density of such a model is

    log p_w(y) = log N(y; 0, (w^2 + sigma_data^2) I) - e - log Z,

where e is the output of the network. A network that returns 0 is exactly a Gaussian. One evaluation
gives the log-density, and its gradient the score, which therefore has no curl. The constant Z is
one for all noise levels. `normalize` measures it at the largest, where p_w is nearly Gaussian.
Training must fit how log p_w changes with w, too (dual score matching, arXiv 2506.05310).
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from dgjax.model.faults import require
from dgjax.model.field import Field
from dgjax.model.gaussian_prior import gaussian_prior
from dgjax.model.parametrization import Network, Pair
from dgjax.model.paths import Coefficients
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, register_dataclass

__all__ = [
    "EnergyPrediction",
    "Normalized",
    "energy_of",
    "energy_prediction",
    "normalize",
]


@register_dataclass
@dataclass(frozen=True)
class EnergyPrediction:
    """The network predicts a scalar energy. Made by `energy_prediction`.

    With y = x/alpha and w = sigma/alpha the network is called with (y/sqrt(w^2 + sigma_data^2),
    log(w/sigma_data)/4). Only y and w enter, so this is the same model on every path.

    Attributes:
        sigma_data: standard deviation of the data.
        log_normalizer: log Z in nats; the score does not depend on it.
    """

    sigma_data: Array
    log_normalizer: Array

    def __call__(self, network: Network, x: Sample, t: Scalar, c: Coefficients, cond: Any) -> Pair:
        """Call the network once and return the pair."""
        y, w = x / c.alpha, c.sigma / c.alpha
        total = jnp.sqrt(w**2 + self.sigma_data**2)
        slope = jax.grad(lambda z: self.energy(network, z, w, cond))(y / total)
        # From s = -y/total^2 - slope/total, without (y - x0)/w, which loses digits at small w.
        x0 = (self.sigma_data / total) ** 2 * y - w**2 / total * slope
        return Pair(x0, w / total**2 * y + w / total * slope)

    def energy(self, network: Network, z: Sample, w: Scalar, cond: Any) -> Scalar:
        """Return the output of the network.

        Args:
            network: function `(z, t, cond) -> energy` of one sample.
            z: y/sqrt(w^2 + sigma_data^2), of the shape of a sample.
            w: noise level sigma/alpha.
            cond: condition of the network.

        Raises:
            ValueError: if the network does not return one number.
        """
        energy = network(z, 0.25 * jnp.log(w / self.sigma_data), cond)
        if jnp.shape(energy) != ():
            raise ValueError(
                f"the network returned shape {jnp.shape(energy)}, but an energy is one number, of "
                "shape (); take another parametrization, or a network such as "
                "dgjax.networks.EnergyMLP"
            )
        return energy

    def log_density(self, network: Network, y: Sample, w: Scalar, cond: Any) -> Scalar:
        """Return the log-density of y = x/alpha in nats, from one pass of the network.

        Args:
            network: function `(z, t, cond) -> energy` of one sample.
            y: one sample divided by alpha.
            w: noise level sigma/alpha.
            cond: condition of the network.
        """
        total = jnp.sqrt(w**2 + self.sigma_data**2)
        energy = self.energy(network, y / total, w, cond)
        return gaussian_prior(self.sigma_data).log_density(y, w) - energy - self.log_normalizer


def energy_prediction(
    sigma_data: ArrayLike = 0.5, log_normalizer: ArrayLike = 0.0
) -> EnergyPrediction:
    """Make the parametrization of energy networks, for data of standard deviation `sigma_data`.

    Args:
        sigma_data: standard deviation of the data, positive.
        log_normalizer: log Z in nats, as `normalize` measures it.

    Returns:
        A parametrization for `field`.

    Raises:
        ValueError: if `sigma_data` is not positive.
    """
    sigma_data = require("sigma_data", as_float(sigma_data), "be positive", lambda n: n > 0)
    return EnergyPrediction(sigma_data, as_float(log_normalizer))


def energy_of(model: Field) -> EnergyPrediction:
    """Return the parametrization of an energy model.

    Args:
        model: the field.

    Raises:
        ValueError: if the model is no energy model.
    """
    if not isinstance(model.parametrization, EnergyPrediction):
        raise ValueError(
            f"a model with {type(model.parametrization).__name__} is no energy model: make the "
            "model with dgjax.energy_prediction and an energy network"
        )
    return model.parametrization


class Normalized(NamedTuple):
    """An energy model whose density integrates to 1 at t_max. Made by `normalize`.

    Attributes:
        model: the model with the measured `log_normalizer`.
        standard_error: of its `log_normalizer`, in nats.
    """

    model: Field
    standard_error: Scalar


def normalize(
    model: Field,
    key: Key,
    shape: tuple[int, ...] | None = None,
    *,
    samples: int = 256,
    cond: Cond = None,
) -> Normalized:
    """Measure the constant Z of an energy model at t_max, and put it into the model.

    Z is the mean of exp(-e) over draws from N(0, (w^2 + sigma_data^2) I), by importance sampling.
    At t_max the noise outweighs the data and e hardly varies, so few draws are enough. The standard
    error says so: it is that of the mean of exp(-e), relative to it.

    Args:
        model: a field with `energy_prediction`.
        key: random key of the draws.
        shape: shape of one sample; that of the model by default.
        samples: number of draws, at least 2.
        cond: condition of the network; Z may depend on it.

    Returns:
        `Normalized(model, standard_error)`.

    Raises:
        ValueError: if the model is no energy model or no shape is known.
    """
    energy = energy_of(model)
    shape = model.shape if shape is None else shape
    if shape is None:
        raise ValueError("the model does not state the shape of its samples: give shape")
    w = model.path.sigma(model.t_max) / model.path.alpha(model.t_max)
    draws = jax.random.normal(key, (samples, *shape))
    # One draw at a time: memory as of one evaluation.
    energies = jax.lax.map(lambda z: energy.energy(model.network, z, w, cond), draws, batch_size=32)
    logs = -energies
    top = jnp.max(logs)
    ratios = jnp.exp(logs - top)
    mean = jnp.mean(ratios)
    error = jnp.std(ratios, ddof=1) / mean / jnp.sqrt(samples)
    known = replace(energy, log_normalizer=top + jnp.log(mean))
    return Normalized(replace(model, parametrization=known), error)
