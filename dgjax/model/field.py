"""The model side: a network, its path and its noise range, evaluated once at (t, x).

A `Field` is a pytree: its parameters travel as leaves, never in closures. Field -> field
transforms keep the velocity and the score a true pair: `repath` moves the model to another path
at equal log-SNR, `condition` fixes what it is conditioned on.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, all_leaves
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.divergence import Divergence
from dgjax.model.parametrization import Network, Pair, Parametrization
from dgjax.model.paths import Path, coefficients, logsnr
from dgjax.typing import (
    Cond,
    Key,
    LinearMap,
    Sample,
    Scalar,
    as_float,
    concrete,
    register_dataclass,
)

__all__ = [
    "Field",
    "GaussianPrior",
    "Local",
    "Prior",
    "condition",
    "evaluate",
    "field",
    "gaussian_prior",
    "log_prior",
    "repath",
]


class Prior(Protocol):
    """Density of the model's noisiest marginal, in coordinates y = x/alpha, w = sigma/alpha."""

    def log_density(self, y: Sample, w: Scalar) -> Scalar:
        """log-density of y, in nats."""
        ...


@register_dataclass
@dataclass(frozen=True)
class GaussianPrior:
    """N(0, (w^2 + scale^2) I). Made by `gaussian_prior`."""

    scale: Array

    def log_density(self, y: Sample, w: Scalar) -> Scalar:
        variance = w**2 + self.scale**2
        return -0.5 * (jnp.sum(y**2) / variance + y.size * jnp.log(2 * jnp.pi * variance))


def gaussian_prior(scale: ArrayLike = 0.0) -> GaussianPrior:
    """N(0, (w^2 + scale^2) I); `scale` is the standard deviation of the data, or 0."""
    return GaussianPrior(as_float(scale))


@register_dataclass
@dataclass(frozen=True)
class Field:
    """A model of the velocity and the score along a path. Made by `field`.

    `path` is the path it is sampled on, `native` the path in whose time and scale the network
    is called; `t_min` and `t_max` are times on `path`.
    """

    network: Network
    parametrization: Parametrization
    path: Path
    native: Path | None
    t_min: Scalar
    t_max: Scalar
    prior: Prior

    def pair(self, t: Scalar, x: Sample, cond: Cond = None) -> Pair:
        """(x0, eps) at (t, x) from one pass of the network."""
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
) -> Field:
    """A model from its network.

    Args:
        network: callable `(x, t, cond) -> out` on one sample, in the time of `path`. A pytree
            (a Flax NNX module, a dataclass of arrays, `jax.tree_util.Partial`) brings its
            parameters as leaves; a plain function is taken as static.
        path: the path the network was trained on.
        parametrization: what the network predicts.
        t_min, t_max: the model's own smallest and largest time. Log-densities are always those
            of the marginal at `t_min`.
        prior: density at `t_max`; N(0, sigma^2 I) unless told.

    Raises:
        ValueError: if t_min >= t_max, if alpha or sigma is not positive and finite at either, or
            if the log-SNR does not fall from t_min to t_max.
    """
    if all_leaves([network]):
        network = Partial(network)
    t_min, t_max = as_float(t_min), as_float(t_max)
    _check_range(path, t_min, t_max)
    if prior is None:
        prior = gaussian_prior()
    return Field(network, parametrization, path, None, t_min, t_max, prior)


def _check_range(path: Path, t_min: Scalar, t_max: Scalar) -> None:
    low, high = concrete(t_min), concrete(t_max)
    if low is None or high is None:
        return
    if not low < high:
        raise ValueError(f"t_min must be below t_max, got {low:g} and {high:g}; swap them")
    for name, t in (("t_min", t_min), ("t_max", t_max)):
        alpha, sigma = concrete(path.alpha(t)), concrete(path.sigma(t))
        if alpha is None or sigma is None:
            return
        tiny = jnp.finfo(alpha.dtype).eps
        if not (alpha > tiny and sigma > tiny and jnp.isfinite(alpha) and jnp.isfinite(sigma)):
            raise ValueError(
                f"alpha = {alpha:.3g} and sigma = {sigma:.3g} at {name} = {t:.6g}: the model "
                f"divides by both; move {name} inside the path"
            )
    first, last = concrete(logsnr(path, t_min)), concrete(logsnr(path, t_max))
    if first is not None and last is not None and not first > last:
        raise ValueError(
            f"log-SNR must fall from t_min to t_max and goes from {first:.3g} to {last:.3g}; "
            "check the path's numbers (t grows from data to noise)"
        )


def repath(model: Field, path: Path) -> Field:
    """The same model on another path: equal log-SNR, x rescaled by the ratio of the alphas.

    Raises:
        ValueError: if alpha or sigma vanishes on `path` at the model's noise range, or `path` does
            not cover it.
    """
    levels = logsnr(model.path, model.t_min), logsnr(model.path, model.t_max)
    t_min, t_max = path.time(levels[0]), path.time(levels[1])
    _check_range(path, t_min, t_max)
    for level, t in zip(levels, (t_min, t_max), strict=True):
        asked, found = concrete(level), concrete(logsnr(path, t))
        if asked is not None and found is not None and abs(found - asked) > 0.1:
            raise ValueError(
                f"the model reaches log-SNR {asked:.3g} and the path ends at {found:.3g}; "
                "take a path that covers the model's noise range"
            )
    native = model.path if model.native is None else model.native
    return replace(model, path=path, native=native, t_min=t_min, t_max=t_max)


@register_dataclass
@dataclass(frozen=True)
class Conditioned:
    network: Network
    cond: Any

    def __call__(self, x, t, cond):
        return self.network(x, t, self.cond if cond is None else cond)


def condition(model: Field, cond: Cond) -> Field:
    """The model of the conditional density given `cond`; None leaves it as it is."""
    return model if cond is None else replace(model, network=Conditioned(model.network, cond))


def log_prior(model: Field, x: Sample) -> Scalar:
    """log p(x) at t_max in nats, by the model's prior."""
    alpha = model.path.alpha(model.t_max)
    w = model.path.sigma(model.t_max) / alpha
    return model.prior.log_density(x / alpha, w) - x.size * jnp.log(alpha)


class Local(NamedTuple):
    """Everything known at (t, x) from one pass of the network.

    `divergences` are independent estimates of div u, shape (n,); `log_densities` the tracked
    log p_t(x) that belongs to each, in nats. `hvp` multiplies by the Hessian of log p_t; it is
    None in stored copies.
    """

    t: Scalar
    x: Sample
    alpha: Scalar
    sigma: Scalar
    f: Scalar
    g2: Scalar
    logsnr: Scalar
    velocity: Sample
    score: Sample
    divergences: Float[Array, " n"]
    log_densities: Float[Array, " n"]
    hvp: LinearMap | None

    @property
    def divergence(self) -> Scalar:
        """div u at (t, x)."""
        return jnp.mean(self.divergences)

    @property
    def laplacian(self) -> Scalar:
        """Laplacian of log p_t at x, from div u = D f - g^2/2 Lap log p."""
        return 2 * (self.x.size * self.f - self.divergence) / self.g2

    @property
    def log_density(self) -> Scalar:
        """Tracked log p_t(x) in nats."""
        return jnp.mean(self.log_densities)

    @property
    def score_norm2(self) -> Scalar:
        """|s|^2, kept off zero so that it can be divided by."""
        return jnp.maximum(jnp.sum(self.score**2), jnp.finfo(self.score.dtype).tiny)


def evaluate(
    model: Field,
    t: ArrayLike,
    x: Sample,
    *,
    divergence: Divergence,
    key: Key,
    log_densities: Float[Array, " n"] | None = None,
    cond: Cond = None,
) -> Local:
    """One pass of the network at (t, x): velocity, score, divergence and Hessian products.

    What is not read afterwards costs nothing once compiled.
    """
    t = as_float(t)
    c = coefficients(model.path, t)
    (x0, eps), push = jax.linearize(lambda x: model.pair(t, x, cond), x)

    def hessian(z):
        # ds = (alpha dx0 - dx)/sigma^2 for the score s = (alpha x0 - x)/sigma^2
        return -push(z).eps / c.sigma

    # u = alpha' x0 + sigma' eps is finite everywhere; eps carries what of x0 is not in x.
    slope = c.dalpha - c.alpha * c.dsigma / c.sigma
    traces = divergence(lambda z: push(z).x0, x, key)
    return Local(
        t=t,
        x=x,
        alpha=c.alpha,
        sigma=c.sigma,
        f=c.f,
        g2=c.g2,
        logsnr=c.logsnr,
        velocity=c.dalpha * x0 + c.dsigma * eps,
        score=-eps / c.sigma,
        divergences=slope * traces + x.size * c.dsigma / c.sigma,
        log_densities=jnp.zeros_like(traces) if log_densities is None else log_densities,
        hvp=hessian,
    )
