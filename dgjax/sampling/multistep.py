r"""Multistep exponential integrators: one evaluation a step, and the stiff part of the ODE exact.

In scaled coordinates y = x/alpha, w = sigma/alpha the probability-flow ODE, guided or not, is

    dy/d log w = eta y - N,

where eta is how much of the score the drift follows (1 without guides), held over a step, and N
is all the rest (x0 without guides), a polynomial through its last values in u = w^(1/7):

    y(w') = (w'/w)^eta y(w) - integral of (w'/v)^eta N d log v from w to w'.

With eta = 1 and one value that is DDIM, with two DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095).
Where density guidance reaches its bound, eta = 2, methods that leave eta = 1 to the linear part are
unstable at the steps that one can afford.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.guidance.guide import score_weight
from dgjax.model.local import Local
from dgjax.model.paths import Path, coefficients
from dgjax.sampling.interpolation import RHO, clock, log_w_rate, weights
from dgjax.sampling.node_quadrature import Node, gain_missed, weighted
from dgjax.sampling.results import State
from dgjax.typing import Sample, Scalar, inner

__all__ = ["Past", "advance", "nothing_past"]

ETA = 2.0  # the most that is left to the linear part


class Past(NamedTuple):
    """The last k evaluations, newest first; `filled` of them are there.

    `slopes` are dy/d log w, `noises` -sigma s, `rates` d log p/du by each divergence estimate,
    and `settled` is the log-density at the newest.
    """

    us: Float[Array, " k"]
    ys: Float[Array, "k ..."]
    slopes: Float[Array, "k ..."]
    noises: Float[Array, "k ..."]
    rates: Float[Array, "k m"]
    settled: Float[Array, " m"]
    filled: Scalar


def nothing_past(memory: int, x: Sample, log_densities: Float[Array, " m"]) -> Past:
    """Room for `memory` evaluations (for two at least, which Adams-Moulton takes)."""
    k = max(2, memory)
    none = jnp.zeros((k, *x.shape), x.dtype)
    return Past(
        jnp.zeros(k, x.dtype),
        none,
        none,
        none,
        jnp.zeros((k, *log_densities.shape), log_densities.dtype),
        jnp.zeros_like(log_densities),
        jnp.zeros((), jnp.int32),
    )


def advance(
    memory: int,
    path: Path,
    past: Past,
    y0: State,
    drift: Sample,
    local: Local,
    stopped: Scalar,
    dt: Scalar,
) -> tuple[State, Past]:
    """The state after one step of `dt`, and the past with this evaluation in it.

    Args:
        memory: evaluations that the step draws on.
        path: of the model.
        past: evaluations at earlier points.
        y0: at the start.
        drift: the drift there.
        local: what else the model says there.
        stopped: 1 if a guide is at its bound there.
        dt: in the model's own time.
    """
    steered = drift - local.velocity
    then = coefficients(path, local.t + dt)
    u0, u1 = clock(local.logsnr), clock(then.logsnr)

    per_log_w = 2 * local.sigma**2 / local.g2
    slope = (steered * per_log_w - local.sigma**2 * local.score) / local.alpha
    rates = (inner(steered, local.score) - local.divergences) * per_log_w * log_w_rate(u0)
    past = Past(
        _push(u0, past.us),
        _push(local.x / local.alpha, past.ys),
        _push(slope, past.slopes),
        _push(-local.sigma * local.score, past.noises),
        _push(rates, past.rates),
        past.settled,
        past.filled + 1,
    )
    # What the last step foretold is worked out again with this evaluation: its rates, and what
    # it missed, as in `along_drift`.
    place = jnp.arange(past.us.shape[0])
    u_before = jnp.where(past.filled == 1, 2 * u0, past.us[1])
    weigh = partial(weights, past.us, place < past.filled, u_before, u0)
    ends, data = (past.ys[1], past.ys[0]), past.ys - past.slopes
    missed = gain_missed(weigh, (u_before, u0), ends, data, past.noises)
    gained = weigh() @ past.rates + missed
    settled = jnp.where(past.filled == 1, y0.log_densities, past.settled + gained)
    there = place < jnp.minimum(past.filled, memory)
    foretold = settled + weights(past.us, there, u0, u1) @ past.rates

    eta = jnp.clip(score_weight(drift, local), 0, ETA)
    pull = weights(past.us, there, u0, u1, lambda u: (u1 / u) ** (RHO * eta) * log_w_rate(u))
    rest = weighted(pull, eta * past.ys - past.slopes)
    y = (u1 / u0) ** (RHO * eta) * past.ys[0] - rest
    passed = then.logsnr - local.logsnr
    y1 = y0._replace(
        x=then.alpha * y,
        log_densities=foretold,
        score_norm2=y0.score_norm2 + passed * jnp.sum((local.sigma * local.score) ** 2),
        bounded=y0.bounded + passed * stopped,
        node=Node(local.score, local.divergences, slope),
    )
    return y1, past._replace(settled=settled)


def _push(new: Array, past: Array) -> Array:
    return jnp.concatenate([new[None].astype(past.dtype), past[:-1]])
