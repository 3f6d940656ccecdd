"""Time grids, from t_max down to t_min. The first and last entry are the model's own, exactly."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.field import Field
from dgjax.model.paths import logsnr
from dgjax.typing import as_float

__all__ = ["grid_karras", "grid_logsnr", "grid_uniform"]


def _ends(model: Field, inner: Array) -> Float[Array, " n+1"]:
    return jnp.concatenate([model.t_max[None], inner[1:-1], model.t_min[None]])


def _times(model: Field, log_snrs: Array) -> Array:
    return jax.vmap(model.path.time)(log_snrs)


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a positive int, got {steps!r}")


def grid_uniform(model: Field, steps: int) -> Float[Array, " n+1"]:
    """`steps` equal steps of t."""
    _check_steps(steps)
    return _ends(model, jnp.linspace(model.t_max, model.t_min, steps + 1))


def grid_logsnr(model: Field, steps: int) -> Float[Array, " n+1"]:
    """`steps` equal steps of log-SNR."""
    _check_steps(steps)
    start, stop = logsnr(model.path, model.t_max), logsnr(model.path, model.t_min)
    return _ends(model, _times(model, jnp.linspace(start, stop, steps + 1)))


def grid_karras(model: Field, steps: int, rho: ArrayLike = 7.0) -> Float[Array, " n+1"]:
    """`steps` equal steps of (sigma/alpha)^(1/rho) (Karras et al. 2022, eq. 5)."""
    _check_steps(steps)
    rho = as_float(rho)
    start = jnp.exp(-0.5 * logsnr(model.path, model.t_max) / rho)
    stop = jnp.exp(-0.5 * logsnr(model.path, model.t_min) / rho)
    w = jnp.linspace(start, stop, steps + 1) ** rho
    return _ends(model, _times(model, -2 * jnp.log(w)))
