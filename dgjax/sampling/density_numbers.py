"""Numbers that a log-density is close to a linear function of, from a few evaluations of the model.

The points are those of the probability-flow ODE from the data on. Their steps are those of
`dgjax.sampling.multistep` without a guide: y = x/alpha obeys dy/d log w = y - x0, and x0 is a
polynomial in u = w^(1/7) through its last values.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.model.divergence import Divergence
from dgjax.model.field import Field
from dgjax.model.local import evaluate
from dgjax.model.paths import coefficients
from dgjax.sampling.interpolation import RHO, dlog_w_du, quadrature, u_of_logsnr
from dgjax.sampling.state import zeros_of
from dgjax.typing import Key, Sample

__all__ = ["density_numbers"]

ORDER = 3  # evaluations that a step uses


def density_numbers(
    model: Field, grid: Float[Array, " n"], x: Sample, key: Key, divergence: Divergence
) -> Float[Array, " 3*n+1"]:
    """Evaluate a model at every time of a grid, from data to noise, and keep some numbers.

    Args:
        model: the field.
        grid: (n,) decreasing times.
        x: one sample at the last of them.
        key: for the probes, fresh ones at every time.
        divergence: trace estimator.

    Returns:
        (3 n + 1,): at each time, from the last one on, sigma^2 Lap log p_t, |sigma s|^2 and
        |x0|^2/w^2, and then |y|^2/w^2 at the noisiest point.
    """
    times = jnp.flip(grid)
    scales = jax.vmap(lambda t: coefficients(model.path, t))(times)
    us = u_of_logsnr(scales.logsnr)
    index = jnp.arange(len(times))

    def step(carry, i):
        y, x0s = carry
        probe = jax.random.fold_in(key, i)
        local = evaluate(model, times[i], scales.alpha[i] * y, divergence=divergence, key=probe)
        w, noise = local.sigma / local.alpha, local.sigma * local.score
        x0 = y + w * noise
        x0s = x0s.at[i].set(x0)
        curvature = local.sigma**2 * local.laplacian
        known = jnp.stack([curvature, jnp.sum(noise**2), jnp.sum((x0 / w) ** 2)])
        u, after = us[i], us[jnp.minimum(i + 1, len(times) - 1)]
        newest = (index <= i) & (index > i - ORDER)
        density = lambda v: (after / v) ** RHO * dlog_w_du(v)
        weights = quadrature(us, newest, u, after)(density)
        y = (after / u) ** RHO * y - jnp.tensordot(weights, x0s, 1, precision="highest")
        return (y, x0s), known

    y = x / scales.alpha[0]
    (y, _), known = jax.lax.scan(step, (y, zeros_of(y, (len(times), *x.shape))), index)
    last = y * scales.alpha[-1] / scales.sigma[-1]
    return jnp.append(known.ravel(), jnp.sum(last**2))
