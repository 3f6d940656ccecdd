"""The path of a model that was trained at whole time steps, between them too.

Its time is the network's own: 0 is the least noise it was trained at, T - 1 the most.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.interpolate import CubicSpline

from dgjax.model.paths import Path
from dgjax.typing import Scalar, as_float, register_dataclass

__all__ = ["DiscreteTime", "discrete_time"]

HALVINGS = 24  # of the unit interval, to float32's last bit


@register_dataclass
@dataclass(frozen=True)
class DiscreteTime(Path):
    """Variance preserving, log-SNR given at t = 0, 1, ..., T - 1. Made by `discrete_time`.

    Between two steps log-SNR is a cubic in u = log(1 + t), where every usual schedule is smooth:
    near t = 0 the variance of the noise is a multiple of 1 + t.
    """

    values: Float[Array, " T"]  # log-SNR
    slopes: Float[Array, " T"]  # d log-SNR/du

    def _piece(self, k: Array, s: Scalar) -> Scalar:
        """The cubic of the steps k and k + 1, at the share s of the way of u between them."""
        width = _width(k, s)
        start, stop = self.values[k], self.values[k + 1]
        first, last = width * self.slopes[k], width * self.slopes[k + 1]
        rise = stop - start
        curve = (1 - s) * (first - rise) - s * (last - rise)
        return start + s * rise + s * (1 - s) * curve

    def _logsnr(self, t: Scalar) -> Scalar:
        t = jnp.asarray(t)
        k = jnp.clip(jnp.floor(jax.lax.stop_gradient(t)).astype(int), 0, self.values.size - 2)
        start = k.astype(t.dtype)
        # From t - k, not as a difference of two u, which would lose digits.
        return self._piece(k, jnp.log1p((t - start) / (1 + start)) / _width(k, t))

    def alpha(self, t: Scalar) -> Scalar:
        return jnp.exp(0.5 * jax.nn.log_sigmoid(self._logsnr(t)))

    def sigma(self, t: Scalar) -> Scalar:
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-self._logsnr(t)))

    def time(self, logsnr: Scalar) -> Scalar:
        logsnr = as_float(logsnr)
        below = jnp.searchsorted(-self.values, -logsnr, side="right") - 1
        k = jnp.clip(below, 0, self.values.size - 2)

        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            noisier = self._piece(k, middle) < logsnr
            return jnp.where(noisier, low, middle), jnp.where(noisier, middle, high)

        ends = jnp.zeros_like(logsnr), jnp.ones_like(logsnr)
        found = jax.lax.stop_gradient(jax.lax.fori_loop(0, HALVINGS, halve, ends))
        # One step of Newton's brings the derivative, in the log-SNR and in the table.
        s = 0.5 * (found[0] + found[1])
        value, slope = jax.jvp(lambda s: self._piece(k, s), (s,), (jnp.ones_like(s),))
        s = s + (logsnr - value) / jax.lax.stop_gradient(slope)
        start = k.astype(s.dtype)
        return start + (1 + start) * jnp.expm1(s * _width(k, s))


def _width(k: Array, like: Array) -> Array:
    """How much u grows from step k to the next, in the dtype of `like`."""
    return jnp.log1p(1 / (1 + k.astype(like.dtype)))


def discrete_time(alphas_cumprod: tuple[float, ...]) -> DiscreteTime:
    """The path through alpha(t)^2 = `alphas_cumprod[t]`, sigma^2 = 1 - alpha^2 at whole t.

    Log-SNR is exact there, and in between a cubic spline in log(1 + t), whose slopes are kept
    between a third and three times that of the flatter chord beside them, so that it falls
    (Fritsch & Carlson 1980). Drawn through every second of the 1,000 steps of a linear, scaled
    linear or cosine schedule, such a spline misses the others by 4e-4 at most, at t = 1, and by
    less than 1e-6 from t = 20 on; but for the last 40 of the cosine schedule, at whose end
    log-SNR falls off a cliff. Drawn through all, it is closer.

    Raises:
        ValueError: if there are fewer than 4 steps, or the numbers do not fall inside (0, 1).
    """
    table = np.asarray(alphas_cumprod, np.float64)
    inside = (table > 0) & (table < 1)
    if table.ndim != 1 or table.size < 4 or not inside.all() or not (np.diff(table) < 0).all():
        raise ValueError(
            "alphas_cumprod must be at least 4 numbers that fall from below 1 to above 0: the "
            "squared scale of the data at each time step, least noise first"
        )
    values = np.log(table) - np.log1p(-table)
    u = np.log1p(np.arange(table.size))
    chords = np.diff(values) / np.diff(u)
    flatter = np.maximum(np.append(chords, chords[-1]), np.append(chords[0], chords))
    slopes = np.clip(CubicSpline(u, values)(u, 1), 3 * flatter, flatter / 3)
    return DiscreteTime(as_float(values), as_float(slopes))
