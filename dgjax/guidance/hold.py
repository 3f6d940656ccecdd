"""A guide that holds a part of the sample on a trajectory that is known.

Density guidance of a part moves the rest too, since the network couples them. This guide gives the
rest the drift of a reference trajectory, such as the unguided one from the same latent. The
tracked log-density stays exact: identity (A) holds along any drift.

The reference is known at points. In y = x/alpha it is a cubic Hermite polynomial in log w between
them, w = sigma/alpha, with slopes from differences through the five nearest points.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgjax.guidance.parts import Part
from dgjax.model.field import Field
from dgjax.model.local import Local
from dgjax.model.paths import coefficients
from dgjax.typing import Sample, Scalar, as_float, register_dataclass

__all__ = ["Hold", "hold"]

POINTS = 5  # of a difference


@register_dataclass
@dataclass(frozen=True)
class Hold:
    """Give a part of the sample the drift of a reference. Made by `hold`.

    Attributes:
        part: what is held.
        log_ws: (n+1,) decreasing log w of the points of the reference.
        ys: (n+1, *shape) x/alpha there.
        slopes: (n+1, *shape) dy/d log w there.
        strength: rate per log w at which what is off the reference returns to it.
    """

    part: Part
    log_ws: Float[Array, " n+1"]
    ys: Float[Array, "n+1 ..."]
    slopes: Float[Array, "n+1 ..."]
    strength: Scalar

    def reference(self, log_w: Scalar) -> tuple[Sample, Sample]:
        """Return y and dy/d log w of the reference, which ends where its points end."""
        last = self.log_ws.shape[0] - 1
        i = jnp.clip(jnp.searchsorted(-self.log_ws, -log_w, side="right") - 1, 0, last - 1)
        step = self.log_ws[i + 1] - self.log_ws[i]
        share = jnp.clip((log_w - self.log_ws[i]) / step, 0, 1).astype(self.ys.dtype)

        def cubic(s):
            rise = s * s * (3 - 2 * s)
            ends = (1 - rise) * self.ys[i] + rise * self.ys[i + 1]
            bend = (1 - s) * self.slopes[i] - s * self.slopes[i + 1]
            return ends + s * (1 - s) * step * bend

        y, slope = jax.jvp(cubic, (share,), (jnp.ones_like(share),))
        return y, slope / step

    def __call__(self, drift: Sample, local: Local) -> Sample:
        """Return the drift, with that of the reference in the part."""
        y, slope = self.reference(-0.5 * local.logsnr)
        pace = 0.5 * local.g2 / local.sigma**2  # d log w/dt
        back = self.strength * (local.x - local.alpha * y)
        wanted = local.f * local.alpha * y + pace * (local.alpha * slope + back)
        return drift + self.part(wanted.astype(drift.dtype) - drift)


def hold(
    part: Part,
    model: Field,
    ts: Float[Array, " n+1"],
    xs: Float[Array, "n+1 ..."],
    *,
    strength: ArrayLike = 0.5,
) -> Hold:
    """Make a guide that holds a part of the sample on a trajectory.

    Put it before density guidance, which then still forces all of its nats, through its own part.

    Args:
        part: what is held, for instance `region(mask).rest()`.
        model: the field that is sampled; its path tells the noise of the times.
        ts: (n + 1,) decreasing times, n at least 4.
        xs: (n + 1, *shape) the reference at these times, for instance from
            `sample(..., save=Trajectory)` with the same latent and grid.
        strength: rate, per unit of log(sigma/alpha), at which what is off the reference returns
            to it. `Multistep` is stable for steps in log(sigma/alpha) below 0.3/strength.

    Returns:
        A guide.

    Raises:
        ValueError: if there are fewer than 5 points, or `ts` and `xs` do not match.
    """
    ts, xs = jnp.asarray(ts), jnp.asarray(xs)
    if ts.ndim != 1 or len(ts) < POINTS or xs.shape[:1] != ts.shape:
        raise ValueError(
            f"a reference has (n + 1,) times and samples (n + 1, *shape), at least {POINTS} of "
            f"both; got {ts.shape} and {xs.shape}"
        )
    c = jax.vmap(lambda t: coefficients(model.path, t))(ts)
    log_ws = -0.5 * c.logsnr
    ys = xs / c.alpha.reshape(-1, *[1] * (xs.ndim - 1)).astype(xs.dtype)
    return Hold(part, log_ws, ys, _slopes(log_ws, ys), as_float(strength))


def _slopes(log_ws: Float[Array, " n+1"], ys: Float[Array, "n+1 ..."]) -> Float[Array, "n+1 ..."]:
    """Derivatives of the polynomials of degree 4 through the five points nearest to each."""
    count = log_ws.shape[0]
    first = np.clip(np.arange(count) - POINTS // 2, 0, count - POINTS)
    near = first[:, None] + np.arange(POINTS)[None]

    def slope(log_w, near, values):
        # Weights a with sum_j a_j s_j^k = the derivative of s^k at 0, in steps of the points.
        scale = (near[-1] - near[0]) / (POINTS - 1)
        powers = ((near - log_w) / scale) ** jnp.arange(POINTS)[:, None]
        weights = jnp.linalg.solve(powers, jnp.zeros(POINTS, log_w.dtype).at[1].set(1)) / scale
        return jnp.tensordot(weights.astype(values.dtype), values, 1, precision="highest")

    return jax.vmap(slope)(log_ws, log_ws[near], ys[near])
