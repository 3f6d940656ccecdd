"""Evaluate a model at one point (t, x): velocity, score, divergence and Hessian products."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.distilled import KnownTrace
from dgjax.model.divergence import Divergence
from dgjax.model.field import Field
from dgjax.model.manual_axes import explain_manual_axes
from dgjax.model.parametrization import Pair
from dgjax.model.paths import coefficients
from dgjax.model.reverse_mode import has_forward_mode, transpose
from dgjax.model.time_derivative import has_time_derivative
from dgjax.model.trace_head import recorded_pair
from dgjax.typing import Cond, Key, LinearMap, Sample, Scalar, as_float, check_made

__all__ = ["Local", "evaluate", "evaluate_with_rates"]


class Local(NamedTuple):
    """A model at one point (t, x), from one pass of the network. Made by `evaluate`.

    Guides and noise terms read it.

    Attributes:
        t: time on the model's path.
        x: the point, one sample of any shape.
        alpha: scale of the data.
        sigma: standard deviation of the noise.
        f: linear drift d log alpha/dt.
        g2: squared diffusion g^2.
        logsnr: log(alpha^2/sigma^2).
        velocity: u, of the shape of x.
        score: s = grad log p_t(x), of the shape of x.
        divergences: `(n,)` independent estimates of div u.
        log_densities: `(n,)` tracked values of log p_t(x) in nats, one for each estimate.
        hvp: maps an array of the shape of x to its product with the Hessian of log p_t, which is
            the Jacobian of the score, or with its transpose for networks without forward mode:
            for a true score both are one. None in stored copies.
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
        """Divergence of the velocity, the mean of its estimates."""
        return jnp.mean(self.divergences)

    @property
    def laplacian(self) -> Scalar:
        """Laplacian of log p_t, from div u = D f - g^2/2 Lap log p_t."""
        return 2 * (self.x.size * self.f - self.divergence) / self.g2

    @property
    def log_density(self) -> Scalar:
        """Tracked log p_t(x) in nats, the mean of `log_densities`."""
        return jnp.mean(self.log_densities)

    @property
    def score_norm2(self) -> Scalar:
        """Squared norm of `nonzero_score`, which can divide."""
        return jnp.sum(self.nonzero_score**2)

    @property
    def nonzero_score(self) -> Sample:
        """Score s, or a constant vector of length eps/sigma if s is shorter than that.

        With eps the rounding error of the dtype. At a mode s is 0, and the drift of guides that
        divide by |s| depends on the direction in which 0 is approached: this is one of them. The
        derivatives are those of s.
        """
        s = self.score
        sigma = jnp.where(self.sigma == 0, 1, self.sigma)  # stages of solvers start as zeros
        least = jnp.finfo(s.dtype).eps / sigma.astype(s.dtype)
        short = jnp.sum(s**2) < least**2
        entry = least / jnp.sqrt(jnp.asarray(s.size, s.dtype))
        return s + jax.lax.stop_gradient(jnp.where(short, entry - s, 0))


@explain_manual_axes
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
    """Evaluate a model at (t, x) with one pass of the network.

    Under `jit`, results that are not read cost nothing. For the score, velocity or denoised sample
    alone see `score`, `velocity` and `denoise`.

    Args:
        model: the field.
        t: a time on the model's path.
        x: one sample, of any shape.
        divergence: trace estimator for the divergence.
        key: random key of the estimator.
        log_densities: `(n,)` tracked log-densities in nats, stored in the result; 0 by default.
        cond: condition of the network.

    Returns:
        The model at (t, x).
    """
    t, x = as_float(t), jnp.asarray(x)
    seen = lambda x: recorded_pair(model, t, x, cond, _layers(model))
    pair, push, features = jax.linearize(seen, x, has_aux=True)
    done = _Pass(pair, push, features, has_forward_mode(push, x))
    return _local(model, t, x, done, divergence, key, log_densities)


@explain_manual_axes
def evaluate_with_rates(
    model: Field,
    t: ArrayLike,
    x: Sample,
    *,
    divergence: Divergence,
    key: Key,
    log_densities: Float[Array, " n"] | None = None,
    cond: Cond = None,
) -> tuple[Local, Callable[[Sample], Sample]]:
    """Evaluate a model at (t, x) like `evaluate`, and find how its denoised sample changes.

    The arguments are those of `evaluate`.

    Returns:
        The model at (t, x), and a function that maps a drift dx/dt to the derivative in time of
        the denoised sample along it. A call costs one product with the Jacobian, in time and x.

    Raises:
        ValueError: if the network has no forward mode, or no derivative in its time.
    """
    t, x = as_float(t), jnp.asarray(x)
    seen = lambda t, x: recorded_pair(model, t, x, cond, _layers(model))
    pair, push, features = jax.linearize(seen, t, x, has_aux=True)
    push_x = lambda z: push(jnp.zeros_like(t), z)
    if not has_forward_mode(push_x, x):
        raise ValueError(
            "the derivative along the trajectory needs forward mode, and this network has a "
            "jax.custom_vjp: use a solver without derivatives, such as Multistep()"
        )
    if not has_time_derivative(model, t, x, cond):
        raise ValueError(
            "the derivative along the trajectory needs that of the network in its time, and this "
            "network has none (the time is rounded, picks a row of a table or passes "
            "stop_gradient): use a solver without derivatives, such as Multistep()"
        )
    done = _Pass(pair, push_x, features, forward_mode=True)
    local = _local(model, t, x, done, divergence, key, log_densities)
    return local, lambda drift: push(jnp.ones_like(t), drift.astype(x.dtype)).x0


class _Pass(NamedTuple):
    """One pass of the network at (t, x).

    Attributes:
        pair: the expected data and noise.
        push: the derivative of the pair in x.
        features: outputs of the layers that a head reads.
        forward_mode: whether `push` can be evaluated, and not only transposed.
    """

    pair: Pair
    push: Callable[[Sample], Pair]
    features: tuple[Array, ...]
    forward_mode: bool


def _layers(model: Field) -> tuple[str, ...]:
    return () if model.trace_head is None else model.trace_head.layers


def _local(model: Field, t, x, done: _Pass, divergence, key, log_densities) -> Local:
    """Return all that is known at (t, x) from one pass of the network."""
    check_made("divergence", divergence)
    c = coefficients(model.path, t)
    head = model.trace_head
    (x0, eps), push, features, forward_mode = done
    jacobian: LinearMap = lambda z: push(z).x0
    hvp: LinearMap = lambda z: -push(z).eps / c.sigma  # the derivative of s = -eps/sigma
    if not forward_mode:
        jacobian, hvp = transpose(jacobian, x), transpose(hvp, x)

    # div u of u = alpha' x0 + sigma' eps with eps = (x - alpha x0)/sigma.
    slope = c.dalpha - c.alpha * c.dsigma / c.sigma
    if head is not None:
        w = c.sigma / c.alpha
        trace = jnp.sum(head(features, x / c.alpha, x0, w)) / c.alpha
        jacobian = KnownTrace(jacobian, trace, head.error(w) / c.alpha)
    traces = divergence(jacobian, x, key)
    return Local(
        t=t,
        x=x,
        alpha=c.alpha,
        sigma=c.sigma,
        f=c.f,
        g2=c.g2,
        logsnr=c.logsnr,
        velocity=c.dalpha * x0 + c.dsigma * eps,  # finite also where alpha vanishes, unlike f x
        score=-eps / c.sigma,
        divergences=slope * traces + x.size * c.dsigma / c.sigma,
        log_densities=jnp.zeros_like(traces) if log_densities is None else log_densities,
        hvp=hvp,
    )
