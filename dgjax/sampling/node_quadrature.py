"""Log-density along a smooth trajectory, with one evaluation of the model at each of its points.

For trajectories that any program made. `spacetime_quadrature` is for rough ones; what `Multistep`
returns is integrated by `solver_quadrature`, which needs no evaluation of its own.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, Hutchinson, check_count
from dgjax.model.faults import Code, first
from dgjax.model.field import Field, log_prior
from dgjax.model.local import evaluate
from dgjax.model.paths import coefficients, logsnr
from dgjax.sampling.checks import check_monotone, check_points, check_prior_time
from dgjax.sampling.compiled import compile_once
from dgjax.sampling.quadrature_error import score_gains
from dgjax.sampling.spacetime_identity import cumulative_log_density, log_density_gain
from dgjax.sampling.spacetime_quadrature import Quadrature
from dgjax.sampling.stencils import difference_stencils, integrate_points
from dgjax.sampling.traced_numbers import check_model
from dgjax.typing import Cond, Key, as_float, inner

__all__ = ["node_quadrature"]

# Differences through 7 points and integrals through 6 are both of order 6. Differences through an
# odd number are centred, which costs as much as 6 and leaves a half to a third of the error.
DIFFERENCE_POINTS, INTEGRAL_POINTS = 7, 6


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
    """Measure log-density at every point of a smooth trajectory: an ODE, guided or not.

    The model is evaluated at the points and nowhere between. With u the index of a point, dy/du
    and d log w/du come from differences through 7 points, and identity (C) of
    `dgjax.sampling.spacetime_identity` is integrated by a rule of the same order, 6.

    The points must therefore be a smooth function of their index, as on the grids of
    `dgjax.sampling.time_grids`. Use `quadrature` where they are not: for adaptive or stochastic
    solves, for the first points of `Multistep` (which brings a log-density of its own), and where
    a guide's bound starts to act.

    `solver_error` compares with differences and integrals through one point less each, which costs
    no evaluation. The error falls faster with more points than the one stated: mostly that is
    several times too large, and dozens of times with 64 points or more.

    Args:
        model: the field whose density is measured.
        ts: (n+1,) strictly monotone times.
        xs: (n+1, *shape) the points, at least 7.
        key: for the probes, a fresh one at every point.
        log_density: of `xs[0]` at `ts[0]` in nats. By default the model's prior, for which
            `ts[0]` must be t_max. With 0 the result is the difference to the first point.
        divergence: trace estimator.
        cond: condition of the model; the log-density is then that of p(x | cond).
        batch: points evaluated together, which bounds memory.

    Returns:
        `Quadrature(log_density, standard_error, solver_error, log_densities, fault)`, in nats.

    Raises:
        ValueError: if shapes disagree, a number is not finite, a time is outside the model's
            range, times are not monotone, points are fewer than 7, `ts` does not start at t_max
            and `log_density` is left out, or `batch` is not a positive int.
    """
    ts, xs = as_float(ts), jnp.asarray(xs)
    fault = first(
        check_model(model),
        check_points(model, ts, xs, least=DIFFERENCE_POINTS),
        check_monotone(ts, "ts", "use quadrature for other trajectories"),
    )
    check_count("batch", batch)
    model = condition(model, cond)
    if log_density is None:
        fault = first(fault, check_prior_time(model, ts[0], "ts"))
        log_density = log_prior(model, xs[0])
    return _node_quadrature(model, ts, xs, key, as_float(log_density), divergence, batch, fault)


@compile_once
def _node_quadrature(
    model: Field, ts, xs, key, start, divergence: Divergence, batch: int, fault: Code
) -> Quadrature:
    """Integrate as `node_quadrature` does, with arguments that were checked."""
    count = ts.shape[0]
    log_w = -0.5 * jax.vmap(lambda t: logsnr(model.path, t))(ts)
    alphas = jax.vmap(model.path.alpha)(ts)
    stencils = difference_stencils(DIFFERENCE_POINTS, count)
    fewer_stencils = difference_stencils(DIFFERENCE_POINTS - 1, count)

    def rate(i):
        def slopes(near, difference):
            ys = jax.vmap(jnp.divide)(xs[near[i]], alphas[near[i]])
            dy = jnp.einsum("k,k...->...", difference[i], ys, precision="highest")
            return dy, inner(difference[i], log_w[near[i]])

        dy, dlog_w = slopes(*stencils)
        probe = jax.random.fold_in(key, i)
        local = evaluate(model, ts[i], xs[i], divergence=divergence, key=probe)
        c = coefficients(model.path, ts[i])
        rates = log_density_gain(c, local.score, local.divergences, dy, dlog_w)
        parts = score_gains(c, local.score, dy, dlog_w)
        return rates, parts, score_gains(c, local.score, *slopes(*fewer_stencils))

    rates, parts, fewer = jax.lax.map(rate, jnp.arange(count), batch_size=min(batch, count))
    gains = integrate_points(INTEGRAL_POINTS, rates)
    log_densities = cumulative_log_density(model.path, ts, xs[0].size, start, gains)
    lost = integrate_points(INTEGRAL_POINTS, parts) - integrate_points(INTEGRAL_POINTS - 1, fewer)
    errors = jnp.sum(jnp.abs(lost), -1)
    return Quadrature.from_estimates(divergence, log_densities, errors, fault)
