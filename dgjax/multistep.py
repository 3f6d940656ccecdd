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
from typing import ClassVar, NamedTuple

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.interpolation import RHO, clock, log_w_rate, weights
from dgjax.nodes import Node
from dgjax.paths import coefficients
from dgjax.typing import Scalar, inner

__all__ = ["Multistep"]

ETA = 2.0  # the most that is left to the linear part


class _Past(NamedTuple):
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


class Multistep(diffrax.AbstractSolver):
    """Exponential Adams-Bashforth of any order, on fixed grids, for ODEs.

    Its order rises from 1 over the first steps. Log-densities are carried along by Adams-Moulton,
    for what steers by them; what `sample` and `likelihood` return is integrated afterwards, from
    all points at once (`dgjax.nodes`), and is free of the sampler's own error.

    Args:
        memory: evaluations that a step draws on, and its order.

    Raises:
        ValueError: if `memory` is not a positive int.
    """

    memory: int = 3
    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def __check_init__(self):
        if not isinstance(self.memory, int) or self.memory < 1:
            raise ValueError(f"memory must be a positive int, got {self.memory!r}")

    def order(self, terms) -> int:
        del terms
        return self.memory

    def init(self, terms, t0, t1, y0, args):
        del terms, t0, t1, args
        k, x, gains = max(2, self.memory), y0.x, y0.log_densities  # two for Adams-Moulton
        none = jnp.zeros((k, *x.shape), x.dtype)
        return _Past(
            jnp.zeros(k, x.dtype),
            none,
            none,
            none,
            jnp.zeros((k, *gains.shape), gains.dtype),
            jnp.zeros_like(gains),
            jnp.zeros((), jnp.int32),
        )

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del made_jump
        past: _Past = solver_state
        drift, local, stopped, _ = terms.vf(t0, y0, args)
        dt, _ = terms.contr(t0, t1)  # in the model's own time, which diffrax may have turned
        path, steered = args.model.path, drift - local.velocity
        then = coefficients(path, local.t + dt)
        u0, u1 = clock(local.logsnr), clock(then.logsnr)

        per_log_w = 2 * local.sigma**2 / local.g2
        slope = (steered * per_log_w - local.sigma**2 * local.score) / local.alpha
        rates = (inner(steered, local.score) - local.divergences) * per_log_w * log_w_rate(u0)
        past = _Past(
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
        around = partial(weights, past.us, place < past.filled, u_before, u0)
        led = u0 / u_before
        pull = around(lambda u: (u0 / u) ** RHO * log_w_rate(u))
        missed = past.ys[0] - led**RHO * past.ys[1] + _sum(pull, past.ys - past.slopes)
        noise = _sum(around() / (u0 - u_before), past.noises)
        gained = around() @ past.rates - inner(noise, missed) * u0**-RHO
        settled = jnp.where(past.filled == 1, y0.log_densities, past.settled + gained)
        there = place < jnp.minimum(past.filled, self.memory)
        foretold = settled + weights(past.us, there, u0, u1) @ past.rates

        share = 1 - 2 * inner(steered, local.score) / (local.g2 * local.score_norm2)
        eta = jnp.clip(share, 0, ETA)
        pull = weights(past.us, there, u0, u1, lambda u: (u1 / u) ** (RHO * eta) * log_w_rate(u))
        rest = _sum(pull, eta * past.ys - past.slopes)
        y = (u1 / u0) ** (RHO * eta) * past.ys[0] - rest
        passed = then.logsnr - local.logsnr
        y1 = y0._replace(
            x=then.alpha * y,
            log_densities=foretold,
            score_norm2=y0.score_norm2 + passed * jnp.sum((local.sigma * local.score) ** 2),
            bounded=y0.bounded + passed * stopped,
            node=Node(local.score, local.divergences, slope),
        )
        done = diffrax.RESULTS.successful
        return y1, None, {"y0": y0, "y1": y1}, past._replace(settled=settled), done

    def func(self, terms, t0, y0, args):
        raise NotImplementedError("a multistep method takes a fixed grid")


def _sum(weights: Array, arrays: Array) -> Array:
    return jnp.tensordot(weights, arrays, 1, precision="highest")


def _push(new: Array, past: Array) -> Array:
    return jnp.concatenate([new[None].astype(past.dtype), past[:-1]])
