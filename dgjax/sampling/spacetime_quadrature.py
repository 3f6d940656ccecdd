r"""Log-density along any trajectory, smooth or rough, whatever made it.

log p_t(x) is a function of (t, x), so its change between two points does not depend on the
route, and the error of the program that made a trajectory drops out. `quadrature` integrates
identity (C) of `dgjax.sampling.spacetime_identity` along straight lines between the points, and
`chord` measures the difference between two points at one time, where no divergence is needed. For
smooth trajectories `dgjax.sampling.node_quadrature` needs fewer evaluations.
"""

from operator import getitem
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, Hutchinson, check_count
from dgjax.model.faults import Code, as_code, first, refuse
from dgjax.model.field import Field, log_prior, score
from dgjax.model.local import evaluate
from dgjax.model.paths import coefficients, logsnr
from dgjax.sampling.checks import (
    check_in_range,
    check_points,
    check_prior_time,
    check_sample,
)
from dgjax.sampling.compiled import compile_once
from dgjax.sampling.gauss_legendre import gauss, last_coefficients
from dgjax.sampling.quadrature_error import cumulative_error, score_gains, segment_errors
from dgjax.sampling.spacetime_identity import cumulative_log_density, log_density_gain
from dgjax.sampling.traced_numbers import check_model
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, inner, safe_sqrt

__all__ = ["Chord", "Quadrature", "chord", "quadrature"]


class Quadrature(NamedTuple):
    """Log-density at every point of a trajectory, in nats.

    Attributes:
        log_density: (n+1,) at each point.
        standard_error: (n+1,) of `log_density` from the probes; infinite, which means
            unknown, for a single probe.
        solver_error: (n+1,) estimate of the error of `log_density` from the quadrature between the
            points, no bound. An error of the log-density given for the first point is not in it.
        log_densities: (n+1, m) by each of the m divergence estimates.
        fault: 0, or the code of the first check that failed while JAX was tracing, a value of
            `Fault`; all log-densities and errors are then NaN.
    """

    log_density: Float[Array, " n+1"]
    standard_error: Float[Array, " n+1"]
    solver_error: Float[Array, " n+1"]
    log_densities: Float[Array, "n+1 m"]
    fault: Int[Array, ""]

    @classmethod
    def from_estimates(
        cls,
        divergence: Divergence,
        log_densities: Float[Array, "n+1 m"],
        errors: Float[Array, " n"],
        fault: Code,
    ) -> "Quadrature":
        """Average the log-densities of independent estimates and add their errors.

        Args:
            divergence: the trace estimator that they come from.
            log_densities: (n+1, m) nats.
            errors: (n,) sizes of the quadrature's errors between consecutive points, in nats.
            fault: the code of the checks; all results are NaN if one failed.

        Returns:
            `Quadrature` of n+1 points.
        """
        log_densities = refuse(fault, log_densities)
        spread = refuse(fault, jax.vmap(divergence.standard_error)(log_densities))
        error = refuse(fault, cumulative_error(errors))
        return cls(jnp.mean(log_densities, -1), spread, error, log_densities, as_code(fault))


class Chord(NamedTuple):
    """Difference of log-density between two points at one time, in nats.

    Attributes:
        difference: log p_t(x1) - log p_t(x0).
        error: an estimate of the size of its error.
        fault: 0, or the code of the first check that failed while JAX was tracing, a value of
            `Fault`; the two numbers are then NaN.
    """

    difference: Scalar
    error: Scalar
    fault: Int[Array, ""]


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
    error_every: int = 4,
    batch: int = 16,
) -> Quadrature:
    """Measure log-density at every point of any trajectory: a reverse SDE, a jump, a chain.

    Between consecutive points identity (C) is integrated by Gauss-Legendre nodes along the line on
    which y and log w are linear. With steps of size h in log w the error is O(h^(2 nodes)) on a
    smooth trajectory and O(h^nodes) on a rough one, whose increments are of the size of sqrt(h).

    Why log w: of all variables linear in a power of w it alone leaves the noise free of zeros and
    poles, near which Gauss rules converge slowly. On a reverse SDE with two nodes a variable
    linear in w has three times the error, one linear in w^2 seven times.

    `solver_error` compares with a rule of one node more, in the segments where the integrand varies
    most. In the others it is taken to be in proportion to that variation. With the defaults it
    costs 3 forward passes, without a divergence, for every 8 evaluations, and nothing under `jit`
    if it is not read. With jumps about as large as the noise the variation says little about the
    error: set `error_every` to 1, which costs 3 forward passes for every 2 evaluations.

    Args:
        model: the field whose density is measured.
        ts: (n+1,) times of the points, in any order.
        xs: (n+1, *shape) the points.
        key: for the probes, a fresh one at every node.
        log_density: of `xs[0]` at `ts[0]` in nats. By default the model's prior, for which
            `ts[0]` must be t_max. With 0 the result is the difference to the first point.
        divergence: trace estimator.
        cond: condition of the model; the log-density is then that of p(x | cond).
        nodes: evaluations a segment.
        error_every: the error is measured in one of so many segments, at least one.
        batch: nodes evaluated together, which bounds memory.

    Returns:
        `Quadrature(log_density, standard_error, solver_error, log_densities, fault)`, in nats.

    Raises:
        ValueError: if shapes disagree, a number is not finite, a time is outside the model's
            range, `ts` does not start at t_max and `log_density` is left out, or `nodes`,
            `error_every` or `batch` is not a positive int.
    """
    ts, xs = as_float(ts), jnp.asarray(xs)
    fault = first(check_model(model), check_points(model, ts, xs))
    check_count("nodes", nodes)
    check_count("error_every", error_every)
    check_count("batch", batch)
    model = condition(model, cond)
    if log_density is None:
        fault = first(fault, check_prior_time(model, ts[0], "ts"))
        log_density = log_prior(model, xs[0])
    start = as_float(log_density)
    counts = nodes, error_every, batch
    return _quadrature(model, ts, xs, key, start, divergence, *counts, fault)


@compile_once
def _quadrature(
    model: Field,
    ts,
    xs,
    key,
    start,
    divergence: Divergence,
    nodes: int,
    error_every: int,
    batch: int,
    fault: Code,
) -> Quadrature:
    """Integrate as `quadrature` does, with arguments that were checked."""
    shares, masses = gauss(nodes)
    segments = ts.shape[0] - 1
    log_w = -0.5 * jax.vmap(lambda t: logsnr(model.path, t))(ts)
    ys = jax.vmap(lambda t, x: x / model.path.alpha(t))(ts, xs)

    def point(at, i, share):
        dy, dlog_w = at(ys, i + 1) - at(ys, i), at(log_w, i + 1) - at(log_w, i)
        t = model.path.time(-2 * (at(log_w, i) + share * dlog_w))
        return t, model.path.alpha(t) * (at(ys, i) + share * dy), dy, dlog_w

    def gain(index):
        i, j = index // nodes, index % nodes
        t, x, dy, dlog_w = point(getitem, i, shares[j])
        probe = jax.random.fold_in(key, index)
        local = evaluate(model, t, x, divergence=divergence, key=probe)
        c = coefficients(model.path, t)
        gains = masses[j] * log_density_gain(c, local.score, local.divergences, dy, dlog_w)
        return gains, score_gains(c, local.score, dy, dlog_w)

    def score_gain(i, share):
        t, x, dy, dlog_w = point(_take, i, share)
        return score_gains(coefficients(model.path, t), score(model, t, x), dy, dlog_w)

    count = segments * nodes
    gains, parts = jax.lax.map(gain, jnp.arange(count), batch_size=min(batch, count))
    gains = jnp.sum(gains.reshape(segments, nodes, -1), 1)
    log_densities = cumulative_log_density(model.path, ts, xs[0].size, start, gains)
    parts = parts.reshape(segments, nodes, -1)
    errors = segment_errors(score_gain, parts, error_every, batch)
    return Quadrature.from_estimates(divergence, log_densities, errors, fault)


def _take(array: Array, index: Int[Array, ""]) -> Array:
    """Return `array[index]`, also for an index that lies on an explicit axis of a mesh."""
    chosen = jax.nn.one_hot(index, array.shape[0], dtype=array.dtype)
    return jnp.tensordot(chosen, array, 1, precision="highest")


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
    """Measure log p_t(x1) - log p_t(x0): the integral of <s, dx> along the chord between them.

    Gauss-Legendre, with an error of O(|x1 - x0|^(2 nodes + 1)).

    The error stated is the size of the last two Legendre coefficients of <s, dx> at the nodes,
    plus rounding. Where the coefficients decay, the value is better than stated, by as many digits
    again. Where the chord passes between modes they do not decay, and the error stated says so
    (two rules of different order may agree by accident there). Two things are not in the error: a
    bend that falls between all nodes, and the dependence on the route of a learned score that is
    not a gradient.

    Args:
        model: the field whose density is measured.
        t: time of both points.
        x0: the first point, of any shape.
        x1: the second point, of the same shape.
        cond: condition of the model; the log-density is then that of p(x | cond).
        nodes: evaluations, none of them with a divergence. Five are enough for a small step;
            raise the number until the error is small enough.
        batch: points evaluated together, which bounds memory.

    Returns:
        `Chord(difference, error, fault)`, in nats.

    Raises:
        ValueError: if shapes disagree, a number is not finite, t is outside the model's range,
            `nodes` is not an int above 1 or `batch` is not a positive int.
    """
    x0, x1 = jnp.asarray(x0), jnp.asarray(x1)
    if x0.shape != x1.shape:
        raise ValueError(f"x0 {x0.shape} and x1 {x1.shape} must be points of one shape")
    t = as_float(t)
    if t.ndim:
        raise ValueError(f"t must be one time for both points, got shape {t.shape}; vmap instead")
    fault = first(
        check_model(model),
        check_sample(model, x0, "x0"),
        check_sample(model, x1, "x1"),
        check_in_range(model, t, "t"),
    )
    if not isinstance(nodes, int) or nodes < 2:
        raise ValueError(f"nodes must be an int above 1 to state an error, got {nodes!r}")
    check_count("batch", batch)
    return _chord(condition(model, cond), t, x0, x1, nodes, batch, fault)


@compile_once
def _chord(model: Field, t, x0, x1, nodes: int, batch: int, fault: Code) -> Chord:
    """Integrate as `chord` does, with arguments that were checked."""
    dx = x1 - x0
    shares, masses = gauss(nodes)
    tail = last_coefficients(nodes, min(2, nodes - 1))

    def slope(i):
        s = score(model, t, x0 + shares[i] * dx)
        return inner(s, dx), jnp.sum(jnp.abs(s * dx))

    slopes, sizes = jax.lax.map(slope, jnp.arange(nodes), batch_size=min(batch, nodes))
    last = jnp.einsum("i,ik->k", slopes, tail, precision="highest")
    rounding = jnp.finfo(slopes.dtype).eps * inner(masses, sizes)
    error = safe_sqrt(inner(last, last)) + rounding
    difference = inner(masses, slopes)
    return Chord(refuse(fault, difference), refuse(fault, error), as_code(fault))
