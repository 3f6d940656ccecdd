"""Detail Daemon: tell the network less noise than there is, in the middle of sampling.

A tool of users of Stable Diffusion (github.com/muerrilla/sd-webui-detail-daemon; for ComfyUI
github.com/Jonseed/ComfyUI-Detail-Daemon). A network that is told less noise removes less, and what
is left becomes detail in later steps. The solver goes on from the true noise level.

With y = x/alpha and w = sigma/alpha the network's noise prediction eps(y, w) is replaced by
(1 - m) eps(y, (1 - m) w), which leaves the denoised sample as the network gives it at the lowered
level (1 - m) w. The share m is a smooth bump over the steps.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float

from dgjax.guidance.schedules import Schedule, schedule
from dgjax.model.conditioned import condition
from dgjax.model.faults import finite, require
from dgjax.model.field import Field
from dgjax.model.local import Local
from dgjax.model.paths import logsnr
from dgjax.typing import Cond, Sample, as_float, register_dataclass

__all__ = ["DetailDaemon", "detail_daemon"]


@register_dataclass
@dataclass(frozen=True)
class DetailDaemon:
    """Replace the model's noise prediction by that for less noise. Made by `detail_daemon`.

    It costs one more pass of the network where the share is not 0, and no Jacobian product.

    Attributes:
        model: the model, on any path: it is evaluated at the lowered noise level of this path.
        share: the share m of the noise that the network is not told, a schedule in log-SNR.
    """

    model: Field
    share: Schedule

    def __call__(self, drift: Sample, local: Local) -> Sample:
        """Return the guided drift."""
        share, path = self.share(local.logsnr), self.model.path

        def guided(drift: Sample) -> Sample:
            ends = [logsnr(path, t) for t in (self.model.t_max, self.model.t_min)]
            told = jnp.clip(local.logsnr - 2 * jnp.log1p(-share), *ends)
            t = path.time(told)
            eps = self.model.pair(t, local.x * (path.alpha(t) / local.alpha)).eps
            kept = jnp.exp(0.5 * (local.logsnr - told))  # 1 - m, unless t is at an end
            score = -kept * eps / local.sigma
            return drift - 0.5 * local.g2 * (score - local.score)

        # Under vmap over samples with one common time the predicate is not batched, so `cond`
        # does not become a `select`: where the share is 0 the network does not run again.
        return jax.lax.cond(share != 0, guided, lambda drift: drift, drift)


def detail_daemon(
    amount: ArrayLike,
    model: Field,
    ts: Float[ArrayLike, " n+1"],
    *,
    cond: Cond = None,
    start: ArrayLike = 0.2,
    end: ArrayLike = 0.8,
    bias: ArrayLike = 0.5,
    exponent: ArrayLike = 1.0,
) -> DetailDaemon:
    """Make a guide that tells the network less noise in the middle of sampling: Detail Daemon.

    The share of the noise that is not told rises from 0 at `start` to `amount` and falls to 0 at
    `end`, both by half a cosine. `start` and `end` are shares of the steps: 0 is the first step,
    1 the last. An amount above 0 gives more detail, one below 0 less. Between steps the share is
    linear in log-SNR. `amount` is that of the web UI; ComfyUI's node multiplies its own by 0.1 and
    by the weight of classifier-free guidance.

    It keeps other guidance as it is. The tracked log-density remains that of the model at the true
    noise level, by identity (A) of `dgjax.guidance.guide`.

    Args:
        amount: largest share, below 1.
        model: the field being sampled.
        ts: (n + 1,) decreasing times of the solver's n steps, at least two steps.
        cond: the condition given to `sample`.
        start: share of the steps before the bump.
        end: share of the steps at which the bump ends.
        bias: where between `start` and `end` the bump is highest, in (0, 1).
        exponent: power of the bump, positive; above 1 it is narrower.

    Returns:
        A guide.

    Raises:
        ValueError: if an option is out of range or there are fewer than two steps.
    """
    ts = as_float(ts)
    if ts.ndim != 1 or len(ts) < 3:
        raise ValueError(f"ts are the (n + 1,) times of at least two steps, got shape {ts.shape}")
    amount = require(
        "amount", as_float(amount), "be finite and below 1", lambda m: finite(m) & (m < 1)
    )
    start = require("start", as_float(start), "be finite", finite)
    end = require("end", as_float(end), "be above start", lambda end: end > start)
    bias = require("bias", as_float(bias), "lie in (0, 1)", lambda b: (b > 0) & (b < 1))
    exponent = require("exponent", as_float(exponent), "be positive", lambda n: n > 0)
    middle = start + bias * (end - start)
    steps = jnp.arange(len(ts)) / (len(ts) - 2)  # the last time starts no step
    rise = jnp.minimum((steps - start) / (middle - start), (end - steps) / (end - middle))
    bump = 0.5 * (1 - jnp.cos(jnp.pi * jnp.clip(rise, 0, 1)))
    shares = (amount * bump**exponent).at[-1].set(0)
    knots = jax.vmap(lambda t: logsnr(model.path, t))(ts)
    cond = jax.tree.map(jnp.asarray, cond)  # a Python number would cause a new trace
    return DetailDaemon(condition(model, cond), schedule(shares, knots))
