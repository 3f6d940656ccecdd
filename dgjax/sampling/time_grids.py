"""Time grids of samplers, from t_max down to t_min of the model, both of them exactly."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.divergence import check_count
from dgjax.model.faults import numbers, require
from dgjax.model.field import Field
from dgjax.model.paths import logsnr
from dgjax.typing import as_float

__all__ = ["grid_from_data", "grid_karras", "grid_logsnr", "grid_uniform"]

CUT = (0.5, 0.75, 1.0)  # where the parts of the step at the data end, from the noise on
LEAST_CUT = 15  # steps of a grid in which one is cut


def _with_ends(model: Field, times: Array) -> Float[Array, " n+1"]:
    """`times` with t_max and t_min themselves as the ends, which rounding may have moved."""
    return jnp.concatenate([model.t_max[None], times[1:-1], model.t_min[None]])


def _times(model: Field, log_snrs: Array) -> Array:
    return jax.vmap(model.path.time)(log_snrs)


def _from(model: Field, start: Array, shares: np.ndarray) -> Array:
    """Return the times at these shares of the range from a log-SNR to that of t_min."""
    return _times(model, start + as_float(shares) * (logsnr(model.path, model.t_min) - start))


def _at_shares(model: Field, shares: np.ndarray) -> Float[Array, " n+1"]:
    """Return the times at these shares of the model's range of log-SNR, from t_max on."""
    return _with_ends(model, _from(model, logsnr(model.path, model.t_max), shares))


def grid_uniform(model: Field, steps: int) -> Float[Array, " n+1"]:
    """Return a grid of equal steps of t.

    Args:
        model: the field, whose range the grid covers.
        steps: number of steps.

    Returns:
        (steps + 1,) decreasing times.

    Raises:
        ValueError: if `steps` is not a positive int.
    """
    check_count("steps", steps)
    return _with_ends(model, jnp.linspace(model.t_max, model.t_min, steps + 1))


def grid_logsnr(
    model: Field, steps: int, *, noise: ArrayLike | None = None
) -> Float[Array, " n+1"]:
    """Return a grid of equal steps of log-SNR.

    Args:
        model: the field, whose range the grid covers.
        steps: number of steps.
        noise: sigma/alpha at which the grid starts, within the model's range; None for t_max.

    Returns:
        (steps + 1,) decreasing times.

    Raises:
        ValueError: if `steps` is not a positive int, or `noise` is not one number within the range.
    """
    check_count("steps", steps)
    shares = np.linspace(0, 1, steps + 1)
    if noise is None:
        return _at_shares(model, shares)
    noise = as_float(noise)
    if noise.ndim:
        raise ValueError(f"noise must be one number, got shape {noise.shape}")
    most, least = (jnp.exp(-0.5 * logsnr(model.path, t)) for t in (model.t_max, model.t_min))
    low, high = numbers(least, most)
    within = lambda w: (w > low) & (w <= high * (1 + 1e-5))
    wanted = "be above sigma/alpha of t_min and at most that of t_max"
    noise = require("noise", noise, wanted, within)
    return jnp.append(_from(model, -2 * jnp.log(noise), shares)[:-1], model.t_min)


def grid_from_data(model: Field, steps: int) -> Float[Array, " n+1"]:
    """Return a grid for likelihoods of real data: `grid_logsnr` with shorter steps at the data.

    A solve that starts at the data has no earlier evaluations there, so its first steps are of low
    order, and real data, which are not quite the model's, move most in them. So the step at the
    data is cut into a quarter, a quarter and a half, the other steps are equal in log-SNR, and
    there are as many as asked for. Fewer than 15 steps are all equal: there are none to spare.

    Args:
        model: the field, whose range the grid covers.
        steps: number of steps.

    Returns:
        (steps + 1,) decreasing times.

    Raises:
        ValueError: if `steps` is not a positive int.
    """
    check_count("steps", steps)
    if steps < LEAST_CUT:
        return grid_logsnr(model, steps)
    equal = steps - len(CUT)
    shares = np.concatenate([np.arange(equal + 1), equal + np.asarray(CUT)]) / (equal + 1)
    return _at_shares(model, shares)


def grid_karras(model: Field, steps: int, rho: ArrayLike = 7.0) -> Float[Array, " n+1"]:
    """Return a grid of equal steps of (sigma/alpha)^(1/rho) (EDM, arXiv 2206.00364, eq. 5).

    Args:
        model: the field, whose range the grid covers.
        steps: number of steps.
        rho: the larger, the shorter are the steps near the data.

    Returns:
        (steps + 1,) decreasing times.

    Raises:
        ValueError: if `steps` is not a positive int.
    """
    check_count("steps", steps)
    rho = as_float(rho)
    start = jnp.exp(-0.5 * logsnr(model.path, model.t_max) / rho)
    stop = jnp.exp(-0.5 * logsnr(model.path, model.t_min) / rho)
    w = jnp.linspace(start, stop, steps + 1) ** rho
    return _with_ends(model, _times(model, -2 * jnp.log(w)))
