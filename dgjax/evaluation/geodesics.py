r"""Spacetime geodesics of a diffusion model: curves of least energy between noisy samples.

The Fisher-Rao metric of the denoising posteriors (`dgjax.evaluation.posteriors`) is
<d natural, d expectation> (Spacetime Geometry of Denoising, arXiv 2505.17517). So the energy of a
curve needs one evaluation and one Hessian product per point, and no metric tensor.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from dgjax.evaluation.posteriors import jeffreys
from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, Hutchinson, check_count
from dgjax.model.faults import first, refuse
from dgjax.model.field import Field
from dgjax.model.manual_axes import explain_manual_axes
from dgjax.model.paths import logsnr
from dgjax.sampling.checks import check_in_range, check_sample
from dgjax.sampling.traced_numbers import check_model
from dgjax.typing import Cond, Key, Sample, Scalar, as_float

__all__ = ["Geodesic", "geodesic"]

# A function of the times (n+1,) and the points (n+1, *shape) of a curve.
Penalty = Callable[[Float[Array, " n+1"], Float[Array, "n+1 ..."]], Scalar]


class Geodesic(NamedTuple):
    """A curve of least energy between two points of spacetime.

    Attributes:
        ts: (n+1,) times of its points.
        xs: (n+1, *shape) its points.
        length: sum of the square roots of the Jeffreys divergences between consecutive points.
        energy: n/2 times the sum of these divergences, in nats; length^2/2 if the points are
            equally spaced.
        energies: (steps,) estimates of the energy, and the penalty if there is one, during the
            optimisation, each with new probes.
    """

    ts: Float[Array, " n+1"]
    xs: Float[Array, "n+1 ..."]
    length: Scalar
    energy: Scalar
    energies: Float[Array, " steps"]


@explain_manual_axes
def geodesic(
    model: Field,
    t0: ArrayLike,
    x0: Sample,
    t1: ArrayLike,
    x1: Sample,
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    segments: int = 32,
    knots: int = 6,
    steps: int = 200,
    optimiser: optax.GradientTransformation | None = None,
    penalty: Penalty | None = None,
    batch: int = 16,
) -> Geodesic:
    """Find the curve of least energy between (x0, t0) and (x1, t1).

    Between two images at t_min its length is the diffusion edit distance (Spacetime Geometry of
    Denoising, arXiv 2505.17517): the noise that removes one image and the denoising that makes the
    other. The search starts from the geodesic of a flat data density, a semicircle in
    (y, sqrt(2 D) w). A cubic spline in (y, log w) is added to it, whose knots are optimised by
    gradient descent. Each step draws a new probe.

    Args:
        model: the field.
        t0: time of the first end.
        x0: first end, of any shape, on the model's path.
        t1: time of the second end.
        x1: second end, of the shape of `x0`.
        key: for the probes.
        divergence: trace estimator.
        cond: condition of the model, if any.
        segments: number n of segments of the curve.
        knots: number of knots of the spline between the ends.
        steps: number of steps of the optimiser.
        optimiser: `optax.adam` with a cosine decay from 0.03 by default.
        penalty: function of the times and the points of the curve, whose value is added to the
            energy, in nats. A smooth one that is large in a region keeps the curve out of it; that
            of points is their sum over n, as the energy is an integral over the curve.
        batch: number of points evaluated together; it bounds memory.

    Returns:
        `Geodesic(ts, xs, length, energy, energies)`.

    Raises:
        ValueError: if the ends have different shapes or are not finite, a time is outside the
            model's range, or a count is not a positive int.
    """
    t0, t1, x0, x1 = as_float(t0), as_float(t1), jnp.asarray(x0), jnp.asarray(x1)
    for name, count in (("segments", segments), ("knots", knots), ("steps", steps)):
        check_count(name, count)
    if x0.shape != x1.shape:
        raise ValueError(f"the ends {x0.shape} and {x1.shape} must be of one shape")
    fault = check_model(model)
    for name, t, x in (("0", t0, x0), ("1", t1, x1)):
        fault = first(
            fault, check_sample(model, x, f"x{name}"), check_in_range(model, t, f"t{name}")
        )
    model = condition(model, cond)
    low, high = (-0.5 * logsnr(model.path, t) for t in (model.t_min, model.t_max))
    ends = [
        (x / model.path.alpha(t), -0.5 * logsnr(model.path, t)) for t, x in ((t0, x0), (t1, x1))
    ]
    share, base = _semicircle(ends, segments)
    lift = jnp.asarray(_spline(segments, knots), x0.dtype)
    (y0, _), (y1, _) = ends

    def curve(moved):
        ys = y0[None] + jnp.tensordot(share, y1 - y0, 0) + jnp.tensordot(lift, moved[0], 1)
        log_w = jnp.clip(base + lift @ moved[1], low, high)
        ts = jax.vmap(model.path.time)(-2 * log_w)
        # The conversion to log-SNR and back would change the ends by rounding errors.
        ts = ts.at[0].set(t0).at[-1].set(t1)
        return ts, jax.vmap(lambda t, y: model.path.alpha(t) * y)(ts, ys)

    def parts(points, key):
        return jeffreys(model, *points, key=key, divergence=divergence, batch=batch)

    def objective(moved, key):
        points = curve(moved)
        energy = 0.5 * segments * jnp.sum(parts(points, key))
        return energy if penalty is None else energy + penalty(*points)

    if optimiser is None:
        optimiser = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def step(carry, i):
        moved, state = carry
        energy, slope = jax.value_and_grad(objective)(moved, jax.random.fold_in(key, i))
        with jax.numpy_dtype_promotion("standard"):  # schedules of optax mix dtypes
            updates, state = optimiser.update(slope, state, moved)
        return (optax.apply_updates(moved, updates), state), energy

    start = jnp.zeros((knots, *x0.shape), x0.dtype), jnp.zeros(knots, x0.dtype)
    (moved, _), energies = jax.lax.scan(step, (start, optimiser.init(start)), jnp.arange(steps))
    ts, xs = curve(moved)
    pieces = refuse(fault, parts((ts, xs), jax.random.fold_in(key, steps)))
    length = jnp.sum(jnp.sqrt(jnp.maximum(pieces, 0)))
    return Geodesic(ts, xs, length, 0.5 * segments * jnp.sum(pieces), energies)


def _semicircle(ends, segments: int) -> tuple[Array, Array]:
    """Return (y - y0)/(y1 - y0) and log w at n+1 equally spaced points of a flat geodesic.

    For a flat data density the posterior is N(y, w^2 I). Its metric |dy|^2/w^2 + 2 D (d log w)^2
    is that of the upper half-plane in (|y|/sqrt(2 D), w).
    """
    (y0, u0), (y1, u1) = ends
    w0, w1 = jnp.exp(u0), jnp.exp(u1)
    apart = jnp.linalg.norm((y1 - y0).ravel()) / np.sqrt(2 * y0.size)
    apart = jnp.maximum(
        apart, 1e-2 * jnp.maximum(w0, w1)
    )  # nearly vertical: a semicircle needs a width
    centre = (apart**2 + w1**2 - w0**2) / (2 * apart)
    radius = jnp.hypot(centre, w0)
    # The length along the semicircle is log tan(angle/2).
    first, last = (
        jnp.log(jnp.tan(0.5 * jnp.arctan2(w, at - centre))) for w, at in ((w0, 0.0), (w1, apart))
    )
    angle = 2 * jnp.arctan(jnp.exp(jnp.linspace(first, last, segments + 1)))
    return (centre + radius * jnp.cos(angle)) / apart, jnp.log(radius * jnp.sin(angle))


def _spline(segments: int, knots: int) -> np.ndarray:
    """Return (n+1, knots) weights of a cubic spline through `knots` values, 0 at both ends."""
    from scipy.interpolate import CubicSpline  # half a second, which `import dgjax` saves

    values = np.eye(knots + 2)[:, 1:-1]
    spline = CubicSpline(np.linspace(0, 1, knots + 2), values)
    return spline(np.linspace(0, 1, segments + 1))
