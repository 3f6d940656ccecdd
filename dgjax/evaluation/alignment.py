r"""Score alignment: whether a higher prior log-density makes a higher final one.

Density Guidance (arXiv 2502.05807), eqs 11-13. The prior score is pushed through the flow:
dv/dt = (grad u) v with v_T = s_T(x_T), so v_t says how x_t moves when x_T moves along its score. A
latent is aligned at time t if omega_t = <s_t, v_t> > 0. Along the flow
ds/dt = -grad(div u) - (grad u)^T s, hence

    d omega/dt = <-grad(div u), v> = -div((grad u) v)   for constant v,   omega_T = |s_T|^2,

which needs no score but the prior's. Both v_t and omega_t are derivatives of what a sampler
returns, in the direction s_T at x_T: v_t of the sample, and omega_t of the tracked log-density,
whose rate is -div u. So one `jax.jvp` of `sample` gives both, at the order of its solver. It also
works with guides, because the tracked log-density is log p_t(x_t) for any drift.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.evaluation.intervals import check_confidence, share_interval
from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.model.field import Field, condition, score
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import FORWARD
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, concrete, inner

__all__ = ["Alignment", "AlignmentStatistics", "align", "alignment_statistics"]


class Alignment(NamedTuple):
    """Score alignment of one latent, at the end of its trajectory.

    Attributes:
        cosine: cosine of the angle between the score s and the pushed prior score v.
        product: <s, v>, with the model's score at the end.
        omega: the same number from the divergence alone, without the score at the end.
            omega/|s_T|^2 is the gain in final log-density (nats) per nat gained at the start.
        standard_error: standard error of `omega` from the probes; NaN for a single probe.
        prior: |s_T|^2, the value of `product` and `omega` at the start.
        x: the sample, (*shape).
        pushed: v, (*shape).
    """

    cosine: Scalar
    product: Scalar
    omega: Scalar
    standard_error: Scalar
    prior: Scalar
    x: Sample
    pushed: Sample

    @property
    def aligned(self) -> Array:
        """Whether <s, v> > 0."""
        return self.product > 0

    @property
    def angle(self) -> Array:
        """Angle between s and v, in degrees; below 90 if aligned."""
        return jnp.degrees(jnp.arccos(jnp.clip(self.cosine, -1, 1)))


def align(
    model: Field,
    x: Sample,
    grid: Float[Array, " n+1"],
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    **options: Any,
) -> Alignment:
    """Push the score at `x` through the flow and compare it with the score at the end.

    Density Guidance (arXiv 2502.05807), eqs 11-13.

    Args:
        model: the field.
        x: one latent at time `grid[0]`, of any shape.
        grid: (steps + 1,) decreasing times. It may end at any noise level.
        key: for the probes; only `omega` depends on it.
        divergence: trace estimator; only `omega` needs it. If you do not read `omega`, use
            `Untracked()`.
        cond: condition of the model, if any.
        **options: further arguments of `sample` (solver, guides, controller, ...).

    Returns:
        `Alignment`. Use `jax.vmap` over latents and keys, then `alignment_statistics`.

    Raises:
        ValueError: if an argument is invalid, as in `sample`.
    """
    x, grid = jnp.asarray(x), as_float(grid)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating, got {x.dtype}; convert and scale it first")
    values = concrete(x)  # inside the jvp it is traced, and `sample` could not look
    if values is not None and not np.isfinite(values).all():
        raise ValueError("x has NaN or infinite entries; a solve would carry them along silently")
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(f"grid must be (steps + 1,) with at least one step, got {grid.shape}")
    model = condition(model, cond)

    def flow(x: Sample, log_density: Scalar) -> tuple[Sample, Array]:
        run = sample(
            model,
            x,
            grid,
            key=key,
            log_density=log_density,
            divergence=divergence,
            adjoint=FORWARD,
            **options,
        )
        return run.x, run.info.log_densities

    start = score(model, grid[0], x).astype(x.dtype)
    prior = inner(start, start)
    (end, _), (pushed, omegas) = jax.jvp(flow, (x, jnp.zeros_like(prior)), (start, prior))
    final = score(model, grid[-1], end)
    product = inner(final, pushed)
    return Alignment(
        cosine=product / jnp.sqrt(inner(final, final) * inner(pushed, pushed)),
        product=product,
        omega=jnp.mean(omegas),
        standard_error=divergence.standard_error(omegas),
        prior=prior,
        x=end,
        pushed=pushed,
    )


class AlignmentStatistics(NamedTuple):
    """Score alignment over many latents.

    Attributes:
        latents: number of latents counted.
        failed: number of latents left out because their cosine or omega is not finite.
        share: share of latents with <s, v> > 0.
        low: lower end of Wilson's confidence interval of `share`.
        high: upper end of Wilson's confidence interval of `share`.
        mean_angle: mean angle between s and v, in degrees.
        largest_angle: largest angle between s and v, in degrees.
        agreement: share of latents whose `product` and `omega` have the same sign.
    """

    latents: int
    failed: int
    share: float
    low: float
    high: float
    mean_angle: float
    largest_angle: float
    agreement: float


def alignment_statistics(alignments: Alignment, *, confidence: float = 0.95) -> AlignmentStatistics:
    """Return the share of aligned latents with its confidence interval. Not for use under `jit`.

    Args:
        alignments: leaves (m, ...) for m latents, from `jax.vmap` of `align`.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: if `alignments` has no axis of latents, no latent is finite, or `confidence`
            is outside (0, 1).
    """
    check_confidence(confidence)
    if alignments.cosine.ndim != 1:
        raise ValueError(
            f"cosine must be (m,), got {alignments.cosine.shape}: vmap align over the latents"
        )
    product, omega = np.asarray(alignments.product), np.asarray(alignments.omega)
    finite = np.isfinite(np.asarray(alignments.cosine)) & np.isfinite(omega)
    count = int(finite.sum())
    if not count:
        raise ValueError(f"none of {finite.size} latents has a finite angle; refine the grid")
    aligned, angle = product[finite] > 0, np.asarray(alignments.angle)[finite]
    share = share_interval(int(aligned.sum()), count, confidence=confidence)
    return AlignmentStatistics(
        latents=count,
        failed=finite.size - count,
        share=share.value,
        low=share.low,
        high=share.high,
        mean_angle=float(angle.mean()),
        largest_angle=float(angle.max()),
        agreement=float((aligned == (omega[finite] > 0)).mean()),
    )
