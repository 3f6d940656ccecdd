r"""The law of the sampler: the density of where guided samples fall.

Latents from the prior that follow a drift v have a density q_t with

    d log q_t/dt = -div v        along v, and q = p at t_max.

By (A) the difference to the model's log-density changes at

    d (log p_t - log q_t)/dt = div(v - u) + <v - u, s>,

which is 0 without guidance. exp(log p - log q) is the weight of a guided sample in means under the
model. Under the law its mean is 1 where guided samples reach all that the model does; density
guidance in a few dimensions leaves out the surroundings of modes or of all else, and its weights
then have a smaller mean or no finite variance.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgjax.guidance.guide import Guide, apply_guides
from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, Hutchinson, check_count
from dgjax.model.faults import as_code, first, refuse
from dgjax.model.field import Field
from dgjax.model.local import evaluate
from dgjax.model.paths import coefficients, logsnr
from dgjax.sampling.arguments import as_guides
from dgjax.sampling.checks import check_monotone, check_points
from dgjax.sampling.compiled import compile_once
from dgjax.sampling.results import Trajectory
from dgjax.sampling.stencils import difference_stencils, integrate_points
from dgjax.sampling.traced_numbers import check_guides, check_model
from dgjax.typing import Cond, Key, Sample, as_float, inner

__all__ = ["SamplerLaw", "sampler_law"]

POINTS = 6  # through which rates are integrated, and one fewer to compare with


class SamplerLaw(NamedTuple):
    """Log-densities of the law of a sampler along one trajectory, in nats.

    Attributes:
        log_density: (n+1,) log q_t(x_t).
        log_weight: (n+1,) log p_t(x_t) - log q_t(x_t).
        standard_error: (n+1,) of `log_weight` from the probes; infinite, which means unknown, for a
            single probe.
        solver_error: (n+1,) size of the error of `log_weight` due to the grid, and in part to the
            probes.
        fault: 0, or the code of the first check that failed while JAX was tracing, a value of
            `Fault`; all numbers are then NaN.
    """

    log_density: Float[Array, " n+1"]
    log_weight: Float[Array, " n+1"]
    standard_error: Float[Array, " n+1"]
    solver_error: Float[Array, " n+1"]
    fault: Int[Array, ""]


def sampler_law(
    model: Field,
    trajectory: Trajectory,
    guides: Guide | Sequence[Guide],
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    batch: int = 16,
) -> SamplerLaw:
    """Measure the density of the distribution that guided samples come from.

    It is the law of the sampler, along a guided trajectory without noise.

    The model is evaluated at the points of the trajectory, with one derivative of the guided drift
    for each product of the estimator. The rate is integrated by polynomials through 6 points. A
    guide whose bound starts or ends to act makes the rate jump: more steps, or
    `density_guidance(q, bound=...)` with a bound that does not act, cure what that costs.

    Args:
        model: the field that was sampled.
        trajectory: from `sample(..., save=Trajectory)` with these guides and no noise, from a
            latent of the prior at t_max; at least 6 points.
        guides: the guides of the sample.
        key: for the probes, a fresh one at every point.
        divergence: trace estimator.
        cond: condition of the model.
        batch: points evaluated together, which bounds memory.

    Returns:
        `SamplerLaw` at every point, in nats.

    Raises:
        ValueError: if shapes disagree, a number is not finite, a time is outside the model's
            range, times are not monotone, points are fewer than 6, or `batch` is not a positive
            int.
    """
    ts, xs = as_float(trajectory.t), jnp.asarray(trajectory.x)
    guides = as_guides(guides)
    fault = first(
        check_model(model),
        check_points(model, ts, xs, least=POINTS),
        check_monotone(ts, "trajectory.t", "the law is known along solves alone"),
        check_guides(guides, None),
    )
    check_count("batch", batch)
    course = jnp.asarray(trajectory.log_density, xs.dtype)
    return _law(condition(model, cond), ts, xs, course, guides, key, divergence, batch, fault)


@compile_once
def _law(model, ts, xs, course, guides, key, divergence, batch, fault) -> SamplerLaw:
    count = ts.shape[0]
    log_w = -0.5 * jax.vmap(lambda t: logsnr(model.path, t))(ts)
    near, weights = difference_stencils(POINTS, count)
    paces = jnp.einsum("ik,ik->i", weights, log_w[near])  # d log w per point

    def rate(i):
        probe, own = jax.random.split(jax.random.fold_in(key, i))
        c = coefficients(model.path, ts[i])

        def steered(x: Sample):
            local = evaluate(model, ts[i], x, divergence=divergence, key=own)
            # A guide may read the log-density, a function of x whose gradient is the score.
            at = course[i] + inner(jax.lax.stop_gradient(local.score), x - xs[i])
            log_densities = jnp.broadcast_to(at, local.divergences.shape)
            drift = apply_guides(guides, local._replace(log_densities=log_densities))
            return drift - local.velocity, local.score

        change, push, score = jax.linearize(steered, xs[i], has_aux=True)
        pace = paces[i] * 2 * c.sigma**2 / c.g2  # dt per point
        along = inner(change, score)
        return pace * (divergence(push, xs[i], probe) + along)

    rates = jax.lax.map(rate, jnp.arange(count), batch_size=min(batch, count))
    gained = lambda gains: jnp.concatenate([jnp.zeros_like(gains[:1]), jnp.cumsum(gains, 0)])
    log_weights = gained(integrate_points(POINTS, rates))
    fewer = integrate_points(POINTS - 1, rates)
    lost = jnp.mean(integrate_points(POINTS, rates) - fewer, -1)
    log_weight = refuse(fault, jnp.mean(log_weights, -1))
    return SamplerLaw(
        log_density=course - log_weight,
        log_weight=log_weight,
        standard_error=refuse(fault, jax.vmap(divergence.standard_error)(log_weights)),
        solver_error=refuse(fault, gained(jnp.abs(lost))),
        fault=as_code(fault),
    )
