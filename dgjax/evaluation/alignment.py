r"""Score alignment: does a higher prior log-density make a higher final one? ([DG] eqs 11-13)

Push the prior score through the flow: dv/dt = (grad u) v with v_T = s_T(x_T), so that v_t is how
x_t moves when x_T moves along its score, and a latent is aligned where omega_t = <s_t, v_t> > 0.
Along the flow ds/dt = -grad(div u) - (grad u)^T s, hence

    d omega/dt = <-grad(div u), v> = -div((grad u) v),  v held constant, omega_T = |s_T|^2,

which needs no score but the prior's. Both are derivatives of what a sampler returns, in the
direction s_T at x_T: v_t of its sample, and omega_t of its tracked log-density, whose rate is
-div u. So one `jax.jvp` of `sample` gives both, at the order of its solver, and under guides as
well, for the tracked log-density is log p_t(x_t) whatever drift was followed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.model.divergence import Divergence, Hutchinson
from dgjax.model.field import Field, condition, score
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import FORWARD
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, concrete, inner

__all__ = ["Alignment", "AlignmentStatistics", "align", "alignment_statistics"]


class Alignment(NamedTuple):
    """Score alignment of one latent, where its trajectory ended.

    Attributes:
        cosine: of the angle between the score s and the pushed prior score v.
        product: <s, v>, by the model's score at the end.
        omega: the same number without that score; what is gained in log-density at the end (nats)
            for each unit of |s_T|^2 gained at the start is omega/|s_T|^2.
        standard_error: of `omega` from the probes; NaN for a single probe.
        prior: |s_T|^2, where `product` and `omega` started.
        x: the sample.
        pushed: v, of the shape of x.
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
        """Between s and v, in degrees: below 90 where aligned."""
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
    """Pushes the score at `x` through the flow and compares it with the score at the end.

    Args:
        model: the field.
        x: one latent at time `grid[0]`, of any shape.
        grid: (steps + 1,) decreasing times; it may stop at any noise level.
        key: for the probes; only `omega` depends on it.
        divergence: trace estimator. It serves `omega` only: `Untracked()` where that is not read.
        cond: what the model is conditioned on.
        options: passed on to `sample` (solver, guides, controller, ...).

    Returns:
        `Alignment`. `vmap` over latents and keys, then `alignment_statistics`.

    Raises:
        ValueError: as `sample`.
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
        latents: how many were counted.
        failed: how many were left out, for a cosine or an omega that is not finite.
        share: of latents with <s, v> > 0.
        low, high: the interval of confidence of `share` (Wilson's, which stays inside [0, 1]).
        mean_angle: mean angle between s and v, in degrees.
        largest_angle: the largest, in degrees.
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
    """Share of aligned latents with its interval of confidence. Not for use under `jit`.

    Args:
        alignments: of m latents, from `jax.vmap` of `align`: every leaf is (m, ...).
        confidence: of the interval, between 0 and 1.

    Raises:
        ValueError: if `alignments` is of one latent only, none is finite, or `confidence` is
            outside (0, 1).
    """
    from scipy import stats  # half a second that `import dgjax` need not spend

    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
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
    interval = stats.binomtest(int(aligned.sum()), count).proportion_ci(confidence, "wilson")
    return AlignmentStatistics(
        latents=count,
        failed=finite.size - count,
        share=float(aligned.mean()),
        low=float(interval.low),
        high=float(interval.high),
        mean_angle=float(angle.mean()),
        largest_angle=float(angle.max()),
        agreement=float((aligned == (omega[finite] > 0)).mean()),
    )
