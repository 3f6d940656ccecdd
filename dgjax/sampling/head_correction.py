"""An unbiased correction of log-densities by `Distilled`, from probes at a few points.

A log-density by `Distilled` lacks the integral over log w of the error of the predicted trace. The
error is small and smooth, so a few points of the trajectory, drawn at random, estimate its integral
better than probes at every step estimate that of the trace. It stays right where the head is wrong,
and then says so by its standard error.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.model.coloured_probes import Coloured
from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, check_count, sampled_error
from dgjax.model.field import Field
from dgjax.model.paths import logsnr
from dgjax.model.trace_head import linearized_denoiser
from dgjax.typing import Cond, Key, Sample, Scalar, as_float

__all__ = ["Correction", "head_correction"]

LEAST = 0.1  # share of the mean error that every point is drawn with at least


class Correction(NamedTuple):
    """An estimate of the nats that a log-density by `Distilled` lacks.

    Attributes:
        nats: to be added to the log-density at the smallest noise of the trajectory.
        standard_error: of the corrected log-density, in nats.
    """

    nats: Scalar
    standard_error: Scalar


def head_correction(
    model: Field,
    ts: Float[Array, " n+1"],
    xs: Float[Array, "n+1 ..."],
    *,
    key: Key,
    divergence: Divergence = Coloured(5),
    points: int = 2,
    repeats: int = 4,
    cond: Cond = None,
) -> Correction:
    """Estimate what a log-density by `Distilled` lacks, from a few points of its trajectory.

    Each of `repeats` independent estimates of the integral draws `points` points of the trajectory
    at even distances (systematic sampling), more of them where the head states a large error. Their
    mean is unbiased for the trapezoidal rule over all points, however wrong the head is.

    Args:
        model: a field with a head.
        ts: (n+1,) monotone times of the trajectory, such as `Trajectory.t`.
        xs: (n+1, *shape) its points.
        key: of the drawn points and the probes.
        divergence: trace estimator at the drawn points.
        points: number of points in one estimate.
        repeats: number of estimates, at least 2; their spread gives the standard error.
        cond: condition of the model.

    Returns:
        `Correction(nats, standard_error)`.

    Raises:
        ValueError: if the model has no head, or `points` or `repeats` is too small.
    """
    check_count("points", points)
    check_count("repeats", repeats)
    if repeats < 2:
        raise ValueError("repeats must be at least 2, because a single one has no spread")
    head = model.trace_head
    if head is None:
        raise ValueError("the model carries no trained head, so there is nothing to correct")
    model = condition(model, cond)
    ts, xs = as_float(ts), jnp.asarray(xs)
    log_w = -0.5 * logsnr(model.path, ts)
    half = 0.5 * jnp.abs(jnp.diff(log_w))
    lengths = jnp.pad(half, (0, 1)) + jnp.pad(half, (1, 0))  # of the trapezoidal rule
    stated = jax.vmap(head.error)(jnp.exp(log_w))
    stated = stated + LEAST * jnp.mean(stated) + jnp.finfo(stated.dtype).tiny
    shares = lengths * stated
    total = jnp.sum(shares)

    def estimate(key):
        keys = jax.random.split(key, points + 1)
        drawn = (jnp.arange(points) + jax.random.uniform(keys[0])) / points
        index = jnp.searchsorted(jnp.cumsum(shares) / total, drawn).clip(0, len(ts) - 1)

        def lacking(a):
            i, key = a
            return _error(model, ts[i], xs[i], key, divergence) / stated[i]

        return -total * jnp.mean(jax.lax.map(lacking, (index, keys[1:])))

    found = jax.lax.map(estimate, jax.random.split(key, repeats))
    return Correction(jnp.mean(found), sampled_error(found, jnp.inf))


def _error(model: Field, t: Scalar, x: Sample, key: Key, divergence: Divergence) -> Scalar:
    """Estimate how much the predicted trace of d x0/d y is too small."""
    head = model.trace_head
    assert head is not None
    x0, product, features = linearized_denoiser(model, t, x, None, head.layers)
    alpha, w = model.path.alpha(t), jnp.exp(-0.5 * logsnr(model.path, t))
    predicted = jnp.sum(head(features, x / alpha, x0, w))
    return alpha * jnp.mean(divergence(product, x, key)) - predicted
