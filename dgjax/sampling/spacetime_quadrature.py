r"""Spacetime quadrature: log-density along any trajectory, whoever made it.

log p_t(x) is a function of (t, x), so its change between two points does not depend on the
route: the error of whatever made the trajectory drops out. In scaled coordinates y = x/alpha,
w = sigma/alpha a marginal is the data with noise of standard deviation w added, which obeys the
heat equation, and

    d log p = <s_y, dy> + w^2 (Lap_y log p + |s_y|^2) d log w,                          (C)

with log p_t(x) = log p(y; w) - D log alpha. `quadrature` integrates (C) along straight lines
between the points of a rough trajectory, `node_quadrature` along a smooth one from its own
points alone, `chord` between two points at one noise level, where no divergence is needed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from numpy.polynomial import legendre

from dgjax.model.divergence import Divergence, Hutchinson, check_count
from dgjax.model.field import Field, condition, log_prior, score
from dgjax.model.local import evaluate
from dgjax.model.paths import coefficients, logsnr
from dgjax.sampling.node_quadrature import accumulate, gain
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, concrete, inner

__all__ = ["Chord", "Quadrature", "chord", "node_quadrature", "quadrature"]

# Differences through 7 points and integrals through 6 are both of order 6. Centred differences
# cost what 6 points do, and leave a half to a third of their error.
_DIFFERENCE, _INTEGRAL = 7, 6


class Quadrature(NamedTuple):
    """Log-density at every point of a trajectory, in nats.

    Attributes:
        log_density: (n+1,) at each point.
        standard_error: (n+1,) of `log_density` from the probes; NaN for a single probe.
        log_densities: (n+1, m) by each of the m divergence estimates.
    """

    log_density: Float[Array, " n+1"]
    standard_error: Float[Array, " n+1"]
    log_densities: Float[Array, "n+1 m"]


class Chord(NamedTuple):
    """log p(x1) - log p(x0) at one noise level, and the size of its error, both in nats."""

    difference: Scalar
    error: Scalar


def quadrature(
    model: Field,
    ts: Float[Array, " n+1"],
    xs: Float[Array, "n+1 ..."],
    *,
    key: Key,
    log_density: ArrayLike | None = None,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    nodes: int = 2,
    batch: int = 16,
) -> Quadrature:
    """Log-density at every point of a trajectory of any kind: a reverse SDE, a jump, a chain.

    Between consecutive points (C) is integrated by Gauss-Legendre along the line on which y and
    log w are linear. Among clocks linear in a power of w, only log w leaves the noise free of
    zeros and poles, near which Gauss rules converge slowly: on a reverse SDE with two nodes a
    clock linear in w has three times the error, one linear in w^2 seven times.

    With steps of size h in log w the error is O(h^(2 nodes)) on a smooth trajectory and
    O(h^nodes) on a rough one, whose increments are of the size of sqrt(h).

    Args:
        model: the field whose density is measured.
        ts: (n+1,) times of the points, in any order.
        xs: (n+1, *shape) the points.
        key: for the probes, a fresh one at every node.
        log_density: of `xs[0]` at `ts[0]`, in nats; the model's prior unless told. 0 gives
            differences to the first point.
        divergence: trace estimator.
        cond: what the model is conditioned on.
        nodes: evaluations a segment.
        batch: nodes evaluated together, which bounds memory.

    Returns:
        `Quadrature(log_density, standard_error, log_densities)`.

    Raises:
        ValueError: if shapes disagree, a number is not finite, a time is outside the model's
            range, `ts` does not start at t_max and `log_density` is left out, or `nodes` or
            `batch` is not a positive int.
    """
    ts, xs = _points(model, ts, xs, least=2)
    check_count("nodes", nodes)
    model = condition(model, cond)
    start = _start(model, ts, xs, log_density)
    points, masses = legendre.leggauss(nodes)
    places, weights = as_float(0.5 * (points + 1)), as_float(0.5 * masses)

    segments = ts.shape[0] - 1
    log_w = -0.5 * jax.vmap(lambda t: logsnr(model.path, t))(ts)
    ys = jax.vmap(lambda t, x: x / model.path.alpha(t))(ts, xs)

    def gains(index):
        i, j = index // nodes, index % nodes
        dy, dlog_w = ys[i + 1] - ys[i], log_w[i + 1] - log_w[i]
        t = model.path.time(-2 * (log_w[i] + places[j] * dlog_w))
        x = model.path.alpha(t) * (ys[i] + places[j] * dy)
        probe = jax.random.fold_in(key, index)
        local = evaluate(model, t, x, divergence=divergence, key=probe)
        c = coefficients(model.path, t)
        return weights[j] * gain(c, local.score, local.divergences, dy, dlog_w)

    parts = _map(gains, segments * nodes, batch)
    parts = jnp.sum(parts.reshape(segments, nodes, -1), 1)
    return _quadrature(divergence, accumulate(model.path, ts, xs[0].size, start, parts))


def node_quadrature(
    model: Field,
    ts: Float[Array, " n+1"],
    xs: Float[Array, "n+1 ..."],
    *,
    key: Key,
    log_density: ArrayLike | None = None,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    batch: int = 16,
) -> Quadrature:
    """Log-density at every point of a smooth trajectory (an ODE, guided or not).

    One evaluation a point and none between: d/du of y and log w comes from 7-point differences
    of the points themselves, u being their index, and (C) is integrated by the rule of the same
    order, 6. So the points must be a smooth function of their index, as on the grids of
    `dgjax.sampling.time_grids`; those of an adaptive solve or of a stochastic one are not, nor the
    first of `Multistep`, which brings a log-density of its own, nor is a guide smooth where its
    bound starts to act. Use `quadrature` there.

    Args:
        model: the field whose density is measured.
        ts: (n+1,) strictly monotone times.
        xs: (n+1, *shape) the points.
        key, log_density, divergence, cond, batch: as in `quadrature`.

    Returns:
        `Quadrature(log_density, standard_error, log_densities)`.

    Raises:
        ValueError: as `quadrature`, for fewer than 7 points and for times that are not monotone.
    """
    ts, xs = _points(model, ts, xs, least=_DIFFERENCE)
    times = concrete(ts)
    if times is not None and not ((np.diff(times) > 0).all() or (np.diff(times) < 0).all()):
        raise ValueError("ts must be strictly monotone here; use quadrature for other trajectories")
    model = condition(model, cond)
    start = _start(model, ts, xs, log_density)

    count = ts.shape[0]
    at_zero, over_step = np.eye(_DIFFERENCE)[1], 1 / np.arange(1.0, _INTEGRAL + 1)
    near, difference = _stencils(count, count, _DIFFERENCE, at_zero)
    window, integral = _stencils(count - 1, count, _INTEGRAL, over_step)
    log_w = -0.5 * jax.vmap(lambda t: logsnr(model.path, t))(ts)
    alphas = jax.vmap(model.path.alpha)(ts)

    def rate(i):
        scaled = jax.vmap(jnp.divide)(xs[near[i]], alphas[near[i]])
        dy = jnp.einsum("k,k...->...", difference[i], scaled, precision="highest")
        dlog_w = inner(difference[i], log_w[near[i]])
        probe = jax.random.fold_in(key, i)
        local = evaluate(model, ts[i], xs[i], divergence=divergence, key=probe)
        c = coefficients(model.path, ts[i])
        return gain(c, local.score, local.divergences, dy, dlog_w)

    rates = _map(rate, count, batch)
    parts = jnp.einsum("ik,ikm->im", integral, rates[window], precision="highest")
    return _quadrature(divergence, accumulate(model.path, ts, xs[0].size, start, parts))


def chord(
    model: Field,
    t: ArrayLike,
    x0: Sample,
    x1: Sample,
    *,
    cond: Cond = None,
    nodes: int = 16,
    batch: int = 16,
) -> Chord:
    """log p_t(x1) - log p_t(x0), the integral of <s, dx> along the chord between them.

    Gauss-Legendre, whose error is O(|x1 - x0|^(2 nodes + 1)). The error stated is the size of
    the last two Legendre coefficients of <s, dx> at the nodes, plus rounding. A chord that
    passes between modes bends at places that the nodes may straddle, where two rules can agree
    by accident; the coefficients tell that they have not decayed. Where they have, the value is
    better than stated, by as many digits again. Nothing warns of what no node has seen, nor of a
    learned score that is no gradient: its differences depend on the route.

    Args:
        model: the field whose density is measured.
        t: time of both points.
        x0, x1: two points of one shape.
        cond: what the model is conditioned on.
        nodes: evaluations, none of them with a divergence. Five serve a small step; raise them
            until the error is small enough.
        batch: points evaluated together, which bounds memory.

    Returns:
        `Chord(difference, error)`, in nats.

    Raises:
        ValueError: if shapes disagree, a number is not finite, t is outside the model's range,
            `nodes` is not an int above 1 or `batch` is not positive.
    """
    x0, x1 = jnp.asarray(x0), jnp.asarray(x1)
    if x0.shape != x1.shape:
        raise ValueError(f"x0 {x0.shape} and x1 {x1.shape} must be points of one shape")
    t = as_float(t)
    if t.ndim:
        raise ValueError(f"t must be one time for both points, got shape {t.shape}; vmap instead")
    _points(model, jnp.stack([t, t]), jnp.stack([x0, x1]), least=2)
    if not isinstance(nodes, int) or nodes < 2:
        raise ValueError(f"nodes must be an int above 1 to state an error, got {nodes!r}")
    model = condition(model, cond)
    dx = x1 - x0

    points, masses = legendre.leggauss(nodes)
    degrees = np.arange(1, nodes)[-2:]
    last = (degrees + 0.5) * masses[:, None] * legendre.legvander(points, nodes - 1)[:, degrees]
    places, weights, tail = as_float(0.5 * (points + 1)), as_float(0.5 * masses), as_float(last)

    def slope(i):
        s = score(model, t, x0 + places[i] * dx)
        return inner(s, dx), jnp.sum(jnp.abs(s * dx))

    slopes, sizes = _map(slope, nodes, batch)
    unseen = jnp.einsum("i,ik->k", slopes, tail, precision="highest")
    rounding = jnp.finfo(slopes.dtype).eps * inner(weights, sizes)
    return Chord(inner(weights, slopes), jnp.sqrt(inner(unseen, unseen)) + rounding)


def _quadrature(divergence: Divergence, every: Float[Array, "n+1 m"]) -> Quadrature:
    return Quadrature(jnp.mean(every, -1), jax.vmap(divergence.standard_error)(every), every)


def _map(function: Callable[[Array], Any], count: int, batch: int) -> Any:
    check_count("batch", batch)
    return jax.lax.map(function, jnp.arange(count), batch_size=min(batch, count))


def _stencils(targets: int, count: int, width: int, moments: np.ndarray):
    """Indices and weights, both (targets, width), of a linear functional near each target.

    `moments` are its values on 1, u, u^2, ... with u = 0 at the target; weights are exact on
    polynomials through the `width` nearest of `count` points.
    """
    first = np.clip(np.arange(targets) - (width - 1) // 2, 0, count - width)
    index = first[:, None] + np.arange(width)[None]
    offsets = index - np.arange(targets)[:, None]
    powers = offsets[:, None].astype(float) ** np.arange(width)[None, :, None]
    values = np.broadcast_to(moments, index.shape)[..., None]
    return jnp.asarray(index), as_float(np.linalg.solve(powers, values)[..., 0])


def _start(model: Field, ts: Array, xs: Array, log_density: ArrayLike | None) -> Array:
    if log_density is not None:
        return as_float(log_density)
    first, high = concrete(ts[0]), concrete(model.t_max)
    if first is not None and high is not None and not np.isclose(first, high, rtol=1e-5):
        raise ValueError(
            f"the prior is known at t_max = {high:g} only and ts starts at {first:g}: pass the "
            "log_density of xs[0], or 0 for differences to it"
        )
    return log_prior(model, xs[0])


def _points(model: Field, ts, xs, least: int) -> tuple[Array, Array]:
    ts, xs = as_float(ts), jnp.asarray(xs)
    if ts.ndim != 1 or xs.ndim < 1 or xs.shape[0] != ts.shape[0]:
        raise ValueError(f"ts {ts.shape} and xs {xs.shape} must be (n+1,) and (n+1, *shape)")
    if ts.shape[0] < least:
        raise ValueError(f"at least {least} points are needed, got {ts.shape[0]}")
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise ValueError(f"points must be floating, got {xs.dtype}; convert and scale them first")
    values, times = concrete(xs), concrete(ts)
    if values is not None and not np.isfinite(values).all():
        raise ValueError("points have NaN or infinite entries; leave out what failed")
    low, high = concrete(model.t_min), concrete(model.t_max)
    if times is not None and low is not None and high is not None:
        slack = 1e-6 * (high - low)
        if not ((times >= low - slack) & (times <= high + slack)).all():
            raise ValueError(
                f"times from {times.min():g} to {times.max():g} leave the model's own range "
                f"{low:g} to {high:g}; repath the model, or cut the trajectory"
            )
    return ts, xs
