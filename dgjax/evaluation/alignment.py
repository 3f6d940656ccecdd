r"""Score alignment: does a higher prior log-density of a latent mean a higher one of its sample?

**Formulas** (Density Guidance, arXiv 2502.05807, eqs. 11-13). Push the score of the prior through
the flow,

    dv/dt = (grad u) v,    v_T = s_T(x_T),

so that v_t is how x_t moves when x_T moves along its score. A latent is aligned where
omega_t = <s_t, v_t> > 0. Along the flow ds/dt = -grad(div u) - (grad u)^T s, hence

    d omega/dt = <-grad(div u), v> = -div((grad u) v) with v held constant,    omega_T = |s_T|^2,

which needs no score but that of the prior.

**Method.** Both are derivatives in the direction s_T at x_T: v_t of the sample, and omega_t of its
tracked log-density, whose rate is -div u. So one `jax.jvp` of `sample` gives both, at the order of
its solver. It holds under guides as well: the tracked log-density is log p_t(x_t) along any drift.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dgjax.evaluation.intervals import check_confidence, share_interval
from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.model.faults import Code, as_code, first, refuse
from dgjax.model.field import Field, score
from dgjax.sampling.adjoints import FORWARD, Adjoint
from dgjax.sampling.checks import check_grid, check_sample
from dgjax.sampling.compiled import compile_once
from dgjax.sampling.sample import sample
from dgjax.sampling.traced_numbers import check_model
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, inner

__all__ = ["Alignment", "AlignmentStatistics", "align", "alignment_statistics"]


class Alignment(NamedTuple):
    """Score alignment of one latent, at the end of its trajectory.

    Attributes:
        cosine: of the angle between the score s and the pushed prior score v.
        product: <s, v>, with the model's score at the end.
        omega: the same number without that score. The log-density at the end gains
            omega/|s_T|^2 nats for each nat of prior log-density gained along the prior's score.
        standard_error: of `omega` from the probes; infinite, which means unknown, for a single
            probe.
        prior: |s_T|^2, the first value of `product` and `omega`.
        x: the sample.
        pushed: v, of the shape of x.
        fault: 0, or the code of the first check that failed while JAX was tracing, a value of
            `Fault`; the cosine, `product`, `omega` and its error are then NaN.
    """

    cosine: Scalar
    product: Scalar
    omega: Scalar
    standard_error: Scalar
    prior: Scalar
    x: Sample
    pushed: Sample
    fault: Int[Array, ""]

    @property
    def aligned(self) -> Array:
        """Whether <s, v> > 0."""
        return self.product > 0

    @property
    def angle(self) -> Array:
        """Angle between s and v in degrees; below 90 where aligned."""
        ends = jnp.abs(self.cosine) >= 1  # where arccos has no derivative
        angle = jnp.arccos(jnp.where(ends, 0, self.cosine))
        return jnp.degrees(jnp.where(ends, jnp.where(self.cosine > 0, 0, jnp.pi), angle))


def align(
    model: Field,
    x: Sample,
    grid: Float[Array, " n+1"],
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
    adjoint: Adjoint | None = None,
    **options: Any,
) -> Alignment:
    """Find whether a latent of higher log-density leads to a sample of higher log-density.

    The score at the latent is pushed through the flow and compared with the score at the end.

    Args:
        model: the field.
        x: one latent at time `grid[0]`, of any shape.
        grid: (steps + 1,) decreasing times; it may stop at any noise level.
        key: for the probes. Only `omega` depends on them.
        divergence: trace estimator, for `omega` only: `Untracked()` where that is not needed.
        cond: condition of the model.
        adjoint: of the solve, which is differentiated in forward mode. By default the steps of the
            grid serve `jax.grad` of `align` too. Adaptive steps use `dgjax.FORWARD`, and need
            `dgjax.BOTH_MODES` for `jax.grad`.
        **options: more arguments of `sample`, passed on to it: `solver`, `guides`, `noise`,
            `controller`, `progress`.

    Returns:
        `Alignment`. Use `jax.vmap` over latents and keys, then `alignment_statistics`.

    Raises:
        ValueError: as `sample`.
    """
    x, grid = jnp.asarray(x), as_float(grid)
    fault = first(check_model(model), check_grid(model, grid), check_sample(model, x))
    if adjoint is None and options.get("controller") is not None:
        adjoint = FORWARD
    return _align(condition(model, cond), x, grid, key, divergence, adjoint, options, fault)


@compile_once
def _align(
    model: Field,
    x,
    grid,
    key,
    divergence: Divergence,
    adjoint: Adjoint | None,
    options: dict,
    fault: Code,
) -> Alignment:
    """Push the score as `align` does, with arguments that were checked."""

    def flow(x: Sample, log_density: Scalar) -> tuple[tuple[Sample, Array], Array]:
        run = sample(
            model,
            x,
            grid,
            key=key,
            log_density=log_density,
            divergence=divergence,
            adjoint=adjoint,
            **options,
        )
        return (run.x, run.info.log_densities), run.info.fault

    start = score(model, grid[0], x).astype(x.dtype)
    prior = inner(start, start)
    (end, _), (pushed, omegas), solve_fault = jax.jvp(
        flow, (x, jnp.zeros_like(prior)), (start, prior), has_aux=True
    )
    fault = first(fault, solve_fault)
    final = score(model, grid[-1], end)
    product = refuse(fault, inner(final, pushed))
    omegas = refuse(fault, omegas)
    return Alignment(
        cosine=product / jnp.sqrt(inner(final, final) * inner(pushed, pushed)),
        product=product,
        omega=jnp.mean(omegas),
        standard_error=refuse(fault, divergence.standard_error(omegas)),
        prior=prior,
        x=end,
        pushed=pushed,
        fault=as_code(fault),
    )


class AlignmentStatistics(NamedTuple):
    """Score alignment over many latents.

    Attributes:
        latents: number of latents counted.
        failed: number left out, because their cosine or omega is not finite.
        share: share of latents with <s, v> > 0.
        low: lower end of the confidence interval of `share` (Wilson's, which stays in [0, 1]).
        high: its upper end.
        mean_angle: mean angle between s and v, in degrees.
        largest_angle: the largest angle, in degrees.
        agreement: share of latents at which `product` and `omega` are of one sign.
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
    """Compute the share of aligned latents with its confidence interval. Not for use under `jit`.

    Args:
        alignments: of m latents, from `jax.vmap` of `align`: every leaf is (m, ...).
        confidence: of the interval, between 0 and 1.

    Returns:
        `AlignmentStatistics` of the latents with finite results.

    Raises:
        ValueError: if `alignments` is of one latent only, none is finite, or `confidence` is
            outside (0, 1).
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
