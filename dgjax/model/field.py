"""A model: a network with its path, its parametrization and its noise range.

A `Field` is a pytree whose parameters are leaves.
"""

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, all_leaves
from jaxtyping import Array, ArrayLike

from dgjax.model.faults import Code, Fault, check, finite, first, numbers
from dgjax.model.gaussian_prior import Prior, gaussian_prior
from dgjax.model.network_mode import check_inference_mode, check_network
from dgjax.model.parametrization import Network, Pair, Parametrization
from dgjax.model.paths import Path, coefficients, logsnr
from dgjax.typing import Cond, Sample, Scalar, as_float, check_made, register_dataclass

__all__ = [
    "Field",
    "TraceHead",
    "check_noise_range",
    "denoise",
    "field",
    "log_prior",
    "log_prior_at",
    "score",
    "velocity",
]


class TraceHead(Protocol):
    """Predicts the diagonal of the Jacobian of the denoised sample.

    Attributes:
        layers: names of the layers of the network whose outputs the head reads, such as "up.0.1".
    """

    layers: tuple[str, ...]

    def __call__(self, features: tuple[Array, ...], y: Sample, x0: Sample, w: Scalar) -> Sample:
        """Return the diagonal of d x0/d y, of the shape of y.

        Args:
            features: outputs of `layers`.
            y: the point divided by alpha.
            x0: the denoised sample.
            w: noise level sigma/alpha.
        """
        ...

    def error(self, w: Scalar) -> Scalar:
        """Return the root mean square error of the predicted trace at the noise level w."""
        ...


@register_dataclass
@dataclass(frozen=True)
class Field:
    """A model of the velocity and the score along a path. Made by `field`.

    Attributes:
        network: function `(x, t, cond) -> out` of one sample.
        parametrization: what the network predicts.
        path: the path that is sampled on.
        native: the path in whose time and scale the network is called; None if it is `path`.
        t_min: smallest time, on `path`.
        t_max: largest time, on `path`.
        prior: the density at `t_max`.
        shape: shape of one sample; None if it is not known.
        trace_head: predicts the trace of the Jacobian for `Distilled`; None without one.
    """

    network: Network
    parametrization: Parametrization
    path: Path
    native: Path | None
    t_min: Scalar
    t_max: Scalar
    prior: Prior
    shape: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})
    trace_head: TraceHead | None = None

    def __post_init__(self):
        # Python numbers arrive here by `dataclasses.replace(model, t_min=0.05)`.
        for name in ("t_min", "t_max"):
            if not isinstance(value := getattr(self, name), jax.Array):
                object.__setattr__(self, name, as_float(value))

    def pair(self, t: Scalar, x: Sample, cond: Cond = None) -> Pair:
        """Return the expected data x0 and noise eps at (t, x), from one pass of the network.

        Args:
            t: a time on the field's path.
            x: one sample, of any shape.
            cond: condition of the network.
        """
        if self.native is None:
            c = coefficients(self.path, t)
            return self.parametrization(self.network, x, t, c, cond)
        # The pair is the same on every path at equal log-SNR; only the scale of x differs.
        s = self.native.time(logsnr(self.path, t))
        c = coefficients(self.native, s)
        x = x * (c.alpha / self.path.alpha(t))
        return self.parametrization(self.network, x, s, c, cond)


def field(
    network: Network,
    path: Path,
    parametrization: Parametrization,
    *,
    t_min: ArrayLike,
    t_max: ArrayLike,
    prior: Prior | None = None,
    shape: Sequence[int] | None = None,
) -> Field:
    """Make a model from a network.

    Args:
        network: function `(x, t, cond) -> out` of one sample, with t a time on `path`. A pytree (a
            Flax NNX module, a dataclass of arrays, `jax.tree_util.Partial`) brings its parameters
            as leaves. A plain function is static.
        path: the path that the network was trained on.
        parametrization: what the network predicts.
        t_min: smallest time of the model. Log-densities are those of the marginal at `t_min`.
        t_max: largest time of the model, at which sampling starts.
        prior: the density at `t_max`; N(0, sigma^2 I) by default.
        shape: shape of one sample. Functions of the model then refuse samples of another shape,
            such as a batch, which some networks would take for one sample.

    Returns:
        The model.

    Raises:
        ValueError: if `path` or `parametrization` is a constructor that was not called, the network
            takes other arguments, is a PyTorch module or in training mode, `shape` is no tuple of
            positive ints, `t_min` >= `t_max`, alpha or sigma is not
            positive and finite at either, or the log-SNR does not fall from `t_min` to `t_max`.
    """
    check_made("path", path)
    check_made("parametrization", parametrization, arguments=5)
    check_network(network)
    check_inference_mode(network)
    if all_leaves([network]):
        network = Partial(network)
    t_min, t_max = as_float(t_min), as_float(t_max)
    check_noise_range(path, t_min, t_max)
    if prior is None:
        prior = gaussian_prior()
    shape = None if shape is None else _as_shape(shape)
    return Field(network, parametrization, path, None, t_min, t_max, prior, shape)


def _as_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        found = tuple(map(operator.index, shape))
    except TypeError:
        found = (-1,)
    if min(found, default=1) < 1:
        raise ValueError(f"shape must be a tuple of positive ints, such as (4,), got {shape!r}")
    return found


def check_noise_range(path: Path, t_min: Scalar, t_max: Scalar) -> Code:
    """Check that the noise of a path grows from `t_min` to `t_max`, within finite numbers.

    Args:
        path: of the model.
        t_min: smallest time.
        t_max: largest time.

    Returns:
        The code of the check.

    Raises:
        ValueError: if `t_min` >= `t_max`, if alpha or sigma is not positive and finite at either,
            or if the log-SNR does not fall from `t_min` to `t_max`.
    """
    low, high = numbers(t_min, t_max)
    message = "t_min must be below t_max, got {low:g} and {high:g}; swap them, or raise t_max"
    codes = [check(low < high, Fault.MODEL_RANGE, message, low=low, high=high)]
    for name, t in (("t_min", t_min), ("t_max", t_max)):
        alpha, sigma, time = numbers(path.alpha(t), path.sigma(t), t)
        tiny = jnp.finfo(alpha.dtype).eps
        usable = (alpha > tiny) & (sigma > tiny) & finite(alpha) & finite(sigma)
        message = (
            f"alpha = {{alpha:.3g}} and sigma = {{sigma:.3g}} at {name} = {{time:.6g}}; the model "
            f"divides by both, so move {name} to where they are positive and finite"
        )
        shown = {"alpha": alpha, "sigma": sigma, "time": time}
        codes.append(check(usable, Fault.MODEL_RANGE, message, **shown))
    start, stop = numbers(logsnr(path, t_min), logsnr(path, t_max))
    message = (
        "log-SNR must fall from t_min to t_max, but goes from {start:.3g} to {stop:.3g}; "
        "check the numbers of the path (t grows from data to noise)"
    )
    codes.append(check(start > stop, Fault.MODEL_RANGE, message, start=start, stop=stop))
    return first(*codes)


def score(model: Field, t: ArrayLike, x: Sample, cond: Cond = None) -> Sample:
    """Return the score s = grad log p_t(x) = -eps/sigma, from one pass of the network.

    Args:
        model: the field.
        t: a time on the model's path.
        x: one sample, of any shape.
        cond: condition of the network.

    Returns:
        An array of the shape of x.

    Examples:
        >>> import dgjax
        >>> mixture = dgjax.gaussian([3.0, 0.0], 4.0)
        >>> model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.01, t_max=80.0)
        >>> x = jnp.array([1.0, 5.0])
        >>> print(dgjax.score(model, 1.0, x))  # (mean - x)/(4 + 1)
        [ 0.4 -1. ]
        >>> print(dgjax.denoise(model, 1.0, x))  # x + sigma^2 score
        [1.4 4. ]
        >>> print(dgjax.velocity(model, 1.0, x))  # (x - denoised)/t
        [-0.4  1. ]
    """
    t, x = as_float(t), jnp.asarray(x)
    return -model.pair(t, x, cond).eps / model.path.sigma(t)


def velocity(model: Field, t: ArrayLike, x: Sample, cond: Cond = None) -> Sample:
    """Return the velocity u = dx/dt of the probability-flow ODE, from one pass of the network.

    u = alpha' x0 + sigma' eps = f x - g^2/2 s, per unit of the time of the model's path.

    Args:
        model: the field.
        t: a time on the model's path.
        x: one sample, of any shape.
        cond: condition of the network.

    Returns:
        An array of the shape of x.
    """
    t, x = as_float(t), jnp.asarray(x)
    c = coefficients(model.path, t)
    x0, eps = model.pair(t, x, cond)
    return c.dalpha * x0 + c.dsigma * eps


def denoise(model: Field, t: ArrayLike, x: Sample, cond: Cond = None) -> Sample:
    """Return the denoised sample E[x_0 | x_t = x], from one pass of the network.

    Args:
        model: the field.
        t: a time on the model's path.
        x: one sample, of any shape.
        cond: condition of the network.

    Returns:
        An array of the shape of x.
    """
    return model.pair(as_float(t), jnp.asarray(x), cond).x0


def log_prior(model: Field, x: Sample) -> Scalar:
    """Return log p(x) at t_max in nats, by the prior of the model.

    Args:
        model: the field.
        x: one sample at t_max, of any shape.
    """
    return log_prior_at(model, model.t_max, x)


def log_prior_at(model: Field, t: ArrayLike, x: Sample) -> Scalar:
    """Return the log-density of the prior at the noise level of t, in nats.

    It is log p_t(x) where the noise outweighs the data, as it does at t_max.

    Args:
        model: the field.
        t: a time on its path.
        x: one sample of any shape.
    """
    x, c = jnp.asarray(x), coefficients(model.path, as_float(t))
    return model.prior.log_density(x / c.alpha, c.sigma / c.alpha) - x.size * jnp.log(c.alpha)
