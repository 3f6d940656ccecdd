"""Targets of log-density: the pilot of closed-loop guidance, and shooting.

Closed loop: `target_guidance` steers the tracked log-density to the target during one solve, along
the course that `pilot` measured. Shooting: `shoot` finds the quantile q whose whole trajectory ends
at the target, by many solves. Its sample is then a typical one of its q.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox
import jax
import jax.numpy as jnp
import optimistix
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, ArrayLike, Float

from dgjax.guidance.density import DensityGuidance, forcing_nats
from dgjax.guidance.schedules import schedule
from dgjax.guidance.target import Profile
from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.model.faults import Code, Fault, as_code, check, finite, first, numbers, refuse
from dgjax.model.field import Field
from dgjax.model.local import evaluate
from dgjax.model.paths import logsnr
from dgjax.sampling.adjoints import default_adjoint, serves_forward
from dgjax.sampling.arguments import as_guides
from dgjax.sampling.checks import check_latent
from dgjax.sampling.compiled import compile_once
from dgjax.sampling.implicit_root import implicit_root
from dgjax.sampling.results import Sampled, Trajectory, stated_error
from dgjax.sampling.sample import sample
from dgjax.typing import Cond, Key, Sample, Scalar, as_float

__all__ = ["Shot", "pilot", "shoot"]


def pilot(
    model: Field,
    latents: Float[Array, "m ..."],
    grid: Float[Array, " n+1"],
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    **options: Any,
) -> Profile:
    """Measure the mean course of log-density along the probability-flow ODE of a few latents.

    Args:
        model: the field.
        latents: (m, *shape) latents at t_max; about four are enough.
        grid: (steps + 1,) decreasing times.
        key: for the probes.
        divergence: trace estimator.
        cond: condition of the model.
        **options: more arguments of `sample`, passed on to it: `solver`, `adjoint`, `progress`.

    Returns:
        The `Profile` for `target_guidance`.

    Raises:
        ValueError: as `sample`.
    """
    latents, grid = jnp.asarray(latents), as_float(grid)
    for x in latents:  # inside `_pilot` all is traced
        check_latent(model, x, grid, options.get("log_density"))
    return _pilot(condition(model, cond), latents, grid, key, divergence, options)


@compile_once
def _pilot(model: Field, latents, grid, key, divergence: Divergence, options: dict) -> Profile:
    """Solve as `pilot` does, with arguments that were checked."""
    keys = jax.random.split(key, latents.shape[0])

    def one(x, key):
        solve_key, probe_key = jax.random.split(key)
        run = sample(
            model, x, grid, key=solve_key, divergence=divergence, save=Trajectory, **options
        ).trajectory

        def curvature(t, x, i):
            probe = jax.random.fold_in(probe_key, i)
            local = evaluate(model, t, x, divergence=divergence, key=probe)
            return -(local.sigma**2) * local.laplacian

        steps = jnp.arange(grid.shape[0])
        return run.log_density, jax.lax.map(lambda a: curvature(*a), (run.t, run.x, steps))

    tracked, curvature = jax.vmap(one)(latents, keys)
    size = latents[0].size
    tracked = jnp.mean(tracked, 0) + size * jnp.log(jax.vmap(model.path.alpha)(grid))
    knots = jax.vmap(lambda t: logsnr(model.path, t))(grid)
    return Profile(knots, tracked[-1] - tracked, jnp.mean(curvature, 0))


class Shot(NamedTuple):
    """The result of `shoot`.

    Attributes:
        sampled: the sample at the q found; `info.target_met` says whether it is on target.
        q: quantile of density guidance, in (0, 1).
        log_density_range: log-densities in nats at the two ends of the bracket of q. A target
            outside of it is out of reach. A target inside of it that was not met lies in a jump of
            log p(q), where a latent changes basin, or on a slope too steep for `iterations`.
    """

    sampled: Sampled
    q: Scalar
    log_density_range: Float[Array, " 2"]


def shoot(
    model: Field,
    x: Sample,
    grid: Float[Array, " n+1"],
    target: ArrayLike,
    *,
    key: Key,
    low: ArrayLike = 0.001,
    high: ArrayLike = 0.999,
    tolerance: ArrayLike = 0.01,
    iterations: int = 24,
    run: Callable[..., Sampled] = sample,
    **options: Any,
) -> Shot:
    """Sample at the quantile q whose trajectory ends at `target` nats, found by bisection in q.

    Each iteration is a whole solve with the same key, so that log p(q) is one function. Use
    `jax.vmap` over latents and targets. Derivatives of q are those of the root, by the implicit
    function theorem, and do not pass through the iterations.

    Args:
        model: the field.
        x: one latent of any shape, at time `grid[0]`.
        grid: (steps + 1,) decreasing times.
        target: log-density asked for at t_min, in nats.
        key: for probes and noise, the same in every solve.
        low: lower end of the bracket of q.
        high: upper end of the bracket of q.
        tolerance: nats per dimension within which the target counts as met.
        iterations: the largest number of bisections of Phi^-1(q).
        run: the sampler, `sample` or a function of the same signature.
        **options: more arguments of `sample`, passed on to it: `guides` (applied before the
            density guidance), `noise`, `divergence`, `cond`, `solver`, `save`, ...

    Returns:
        `Shot(sampled, q, log_density_range)`. Where JAX is tracing, a check of numbers cannot
        raise: the sample's log_density is then NaN and its `info.fault` names the check.

    Raises:
        ValueError: if the bracket is not inside (0, 1) or the target is not finite, and as
            `sample`.
    """
    target = as_float(target)
    a, b = numbers(as_float(low), as_float(high))
    (goal,) = numbers(target)
    bracket = "the bracket of q must satisfy 0 < low < high < 1, got {a:g}, {b:g}"
    wanted = "target must be finite nats, got {goal}"
    fault = first(
        check((a > 0) & (a < b) & (b < 1), Fault.BRACKET, bracket, a=a, b=b),
        check(finite(goal).all(), Fault.TARGET, wanted, goal=goal),
    )
    x, grid = jnp.asarray(x), as_float(grid)
    check_latent(model, x, grid, options.get("log_density"))  # inside `_shoot` all is traced
    limits = as_float(low), as_float(high), as_float(tolerance)
    return _shoot(model, x, grid, target, key, *limits, iterations, run, options, fault)


@compile_once
def _shoot(
    model: Field,
    x: Sample,
    grid: Array,
    target: Scalar,
    key: Key,
    low: Scalar,
    high: Scalar,
    tolerance: Scalar,
    iterations: int,
    run: Callable[..., Sampled],
    options: dict[str, Any],
    fault: Code,
) -> Shot:
    """Shoot as `shoot` does, with arguments that were checked."""
    before = as_guides(options.pop("guides", ()))

    def solve(probit: Scalar) -> Sampled:
        guide = DensityGuidance(schedule(probit), as_float(1.0))
        return run(model, x, grid, key=key, guides=(*before, guide), **options)

    lower, upper = ndtri(low), ndtri(high)
    # All traced values become arguments: derivatives in them are those of the root.
    converted = equinox.filter_closure_convert(lambda probit: solve(probit).log_density, lower)
    arrays, rest = equinox.partition(converted, equinox.is_array)
    operands, structure = jax.tree.flatten(arrays)

    def reach(probit, *operands):
        return equinox.combine(jax.tree.unflatten(structure, operands), rest)(probit)

    ends = jax.vmap(lambda probit: reach(probit, *operands))(jnp.stack([lower, upper]))

    # The variable is the nats that q forces: argument and value then have one unit and tolerance.
    scale = forcing_nats(model, x.size)
    allowed = tolerance * x.size

    held = jax.lax.stop_gradient((lower, upper, scale, ends, target, operands))
    found = _bisect(reach, *held, 0.1 * jax.lax.stop_gradient(allowed), iterations)

    reachable = (ends[0] - target) * (ends[1] - target) <= 0
    nearest = jnp.where(jnp.abs(ends[0] - target) < jnp.abs(ends[1] - target), lower, upper)
    adjoint = options.get("adjoint") or default_adjoint(options.get("controller"))
    slope = _forward_slope if serves_forward(adjoint) else _reverse_slope
    root = implicit_root(reach, found, target, operands, valid=reachable, slope=slope)
    probit = refuse(fault, jnp.where(reachable, root, nearest))
    sampled = solve(probit)
    error = stated_error(sampled.info.standard_error, sampled.info.solver_error)
    met = (jnp.abs(sampled.log_density - target) + error <= allowed) & sampled.info.finite
    info = sampled.info._replace(target_met=met, fault=as_code(first(fault, sampled.info.fault)))
    return Shot(sampled._replace(info=info), ndtr(probit), ends)


def _bisect(reach, lower, upper, scale, ends, target, operands, tolerance, iterations) -> Scalar:
    """Find the probit at which `reach` is `target`, between `lower` and `upper`."""

    def miss(nats, args):
        del args
        return jnp.sign(ends[1] - ends[0]) * (reach(nats / scale, *operands) - target)

    found = optimistix.root_find(
        miss,
        optimistix.Bisection(rtol=0.0, atol=tolerance, flip=False),  # type: ignore
        0.5 * (lower + upper) * scale,
        options={"lower": lower * scale, "upper": upper * scale},
        max_steps=iterations,
        throw=False,
    ).value
    return jax.lax.stop_gradient(found) / scale


def _forward_slope(function: Callable[[Scalar], Scalar], x: Scalar) -> Scalar:
    return jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


def _reverse_slope(function: Callable[[Scalar], Scalar], x: Scalar) -> Scalar:
    return jax.grad(function)(x)
