r"""Steps of noise along the level set of log p_t with one evaluation each.

In coordinates p = x/sigma the score is e = sigma s. Where the noise outweighs the data that is
close to -p at every noise level: the drift leaves p alone, and level sets are spheres.

**The step.** First the guided drift, by one exponential Euler step. Then the noise z (tangent,
<z, e> = 0), along the ellipse that has the local curvature c = -<z, H z>/|z|^2 of log p along z
and 1 along e (H is the Hessian in p; no more than 1 is possible):

    jump = sin(a)/a z + (1 - cos a) e,    a = sqrt(c) |z|/|e|,

which for small steps is the Ito correction of the projected noise. c is measured on the step
before, from the change of e, and what the step then turns out to have missed of the log-density
asked for (its debt) is paid by the next one, along the new normal. So errors of c do not add up.

**The log-density** is that of the point reached, whatever led there: by (C) of
`dgjax.sampling.node_quadrature`, along the probability flow of the model and, for all the rest of
the step, <e, jump>. With the mean of e over both ends, and
the rest as if it came half-way, the flow misses what it does to H meanwhile:

    gain = <(e0 + e1)/2, jump> + |jump|^2 (c1 - c0)/8,

where now c = -sigma^2 Lap log p/D. For a Gaussian the flow changes e by (I + H) e a unit of log w
and H by 2 (H + H^2), from which the 1/8; a change of c by the jump itself asks for 1/12. Without
this term the error is of order 1 too, but a bias, and three to sixty times as large on mixtures.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.guidance.guide import score_weight
from dgjax.guidance.noise import LevelSetNoise
from dgjax.model.local import Local
from dgjax.model.paths import Path, coefficients
from dgjax.sampling.interpolation import clock, log_w_rate, weights
from dgjax.sampling.node_quadrature import gain_missed
from dgjax.sampling.results import State
from dgjax.typing import Sample, Scalar, inner

__all__ = ["Evaluation", "Jump", "Standing", "arrive", "leave", "stand"]

ETA = (1e-6, 2.0)  # how much of the score is left to the linear part of the drift
FARTHEST = 0.5 * np.pi  # along the ellipse
PAID = 0.375  # of |e|^2 nats in one step: half-way to where the curvature 1 puts the top


class Evaluation(NamedTuple):
    """What the model and the guides say at one point."""

    drift: Sample
    local: Local
    stopped: Scalar


class Standing(NamedTuple):
    """A point with what is known there, and what is remembered of the step that led to it.

    `curvature` is c along that step's noise, `debt` the nats asked for and not yet gained, and
    `u_before`, `heats_before` the clock and the rates of the flow at the point before, of which
    there is none while `first`.
    """

    here: Evaluation
    curvature: Scalar
    debt: Scalar
    u_before: Scalar
    heats_before: Float[Array, " m"]
    first: Array


class Jump(NamedTuple):
    """All of one step but its drift, in p = x/sigma, and the part of it that is noise."""

    whole: Sample
    noise: Sample


def stand(here: Evaluation) -> Standing:
    """At the start of a walk, where the noise outweighs the data."""
    one, heats = jnp.ones((), here.local.x.dtype), _heats(here.local)
    u = clock(here.local.logsnr).astype(one.dtype)
    return Standing(here, one, 0 * one, 2 * u, jnp.zeros_like(heats), jnp.array(True))


def _heats(local: Local) -> Float[Array, " m"]:
    """sigma^2 Lap log p by each divergence estimate: d log p/d log w along the flow, by (C)."""
    return 2 * local.sigma**2 * (local.x.size * local.f - local.divergences) / local.g2


def _steered(here: Evaluation) -> Scalar:
    """d log p/d log w in nats by all that leads away from the flow."""
    local = here.local
    away = inner(here.drift - local.velocity, local.score)
    return 2 * away * local.sigma**2 / local.g2


def _flow(standing: Standing, u0: Scalar, u1: Scalar, *last: tuple[Scalar, Array]) -> Array:
    """Integrals of `_heats` from u0 to u1, through `last` points and the ones before."""
    points = [*last, (u0, _heats(standing.here.local)), (standing.u_before, standing.heats_before)]
    us = jnp.stack([u for u, _ in points])
    there = jnp.ones(us.shape, bool).at[-1].set(~standing.first)
    weight = weights(us, there, u0, u1, log_w_rate)
    return weight @ jnp.stack([heats for _, heats in points])


def leave(
    path: Path, standing: Standing, y0: State, noise: LevelSetNoise, dt: Scalar, dW: Sample
) -> tuple[State, Jump]:
    """The state after a step of `dt`, with its log-densities foretold, and the jump of the noise.

    Args:
        path: of the model.
        standing: where the step starts.
        y0: the state there.
        noise: along the level set.
        dt: in the model's own time.
        dW: noise of variance |dt| per element.
    """
    drift, local, stopped = standing.here
    then = coefficients(path, local.t + dt)
    passed = then.logsnr - local.logsnr
    log_ratio = -0.5 * passed
    e = local.sigma * local.score
    norm2 = local.sigma**2 * local.score_norm2

    # All that follows the score is left to the linear part, as in `dgjax.sampling.multistep`.
    per_log_w = 2 * local.sigma**2 / local.g2
    steered = drift - local.velocity
    eta = jnp.clip(score_weight(drift, local), *ETA)
    slope = (steered * per_log_w - local.sigma**2 * local.score) / local.alpha
    y = local.x / local.alpha + jnp.expm1(eta * log_ratio) / eta * slope

    # g^2 |dt|/sigma^2 is the log-SNR passed if that is linear in t: the noise of what is passed.
    scale = jnp.sqrt(jnp.abs(passed / (local.g2 * dt)))
    z = scale * noise.increment(local, dt, dW)
    angle2 = standing.curvature * jnp.sum(z**2) / norm2
    turn = jnp.sqrt(jnp.maximum(angle2, jnp.finfo(z.dtype).eps ** 2))
    angle = jnp.minimum(turn, FARTHEST)
    across = jnp.sin(angle) / turn
    normal = jnp.cos(angle) * e - standing.curvature * across * z
    normal2 = jnp.maximum(jnp.sum(normal**2), jnp.finfo(z.dtype).tiny)
    lack = jnp.clip(standing.debt / normal2, -PAID, PAID)
    push = 2 * lack / (1 + jnp.sqrt(1 - 2 * lack))  # the root of push - push^2/2 = lack
    moved = across * z
    jump = moved + (1 - jnp.cos(angle)) * e + push * normal

    u0, u1 = clock(local.logsnr), clock(then.logsnr)
    flow = _flow(standing, u0, u1) - local.x.size * jnp.log(then.alpha / local.alpha)
    asked = _steered(standing.here) * log_ratio + standing.debt
    y1 = y0._replace(
        x=then.alpha * y + then.sigma * jump,
        log_densities=y0.log_densities + flow + asked,
        score_norm2=y0.score_norm2 + passed * jnp.sum(e**2),
        bounded=y0.bounded + passed * stopped,
    )
    return y1, Jump(jump, moved)


def arrive(
    standing: Standing, y0: State, y1: State, jump: Jump, there: Evaluation
) -> tuple[State, Standing]:
    """The state with its log-densities settled, in nats, and where it stands.

    Args:
        standing: where the step started.
        y0: the state there.
        y1: as `leave` foretold it.
        jump: of that step.
        there: the evaluation at `y1`.
    """
    old, new = standing.here.local, there.local
    u0, u1 = clock(old.logsnr), clock(new.logsnr)
    log_ratio = -0.5 * (new.logsnr - old.logsnr)
    e0, e1 = old.sigma * old.score, new.sigma * new.score
    data = jnp.stack([(a.x + a.sigma**2 * a.score) / a.alpha for a in (old, new)])
    weigh = partial(weights, jnp.stack([u0, u1]), jnp.ones(2, bool), u0, u1)
    ys = old.x / old.alpha, new.x / new.alpha
    missed = gain_missed(weigh, (u0, u1), ys, data, -jnp.stack([e0, e1]))
    eighth = jnp.sum(jump.whole**2) / 8

    # Steering depends neither on the probes of the divergence nor on whether there are any.
    size2 = jnp.sum(jump.noise**2)
    bend = -inner(e1 - e0, jump.noise) / jnp.where(size2 == 0, 1, size2)
    curvature = jnp.where(size2 == 0, standing.curvature, jnp.clip(bend, 0, 1))
    gained = missed + eighth * (curvature - standing.curvature)
    asked = 0.5 * (_steered(standing.here) + _steered(there)) * log_ratio
    debt = standing.debt + asked - gained

    before, heats = _heats(old), _heats(new)
    flow = _flow(standing, u0, u1, (u1, heats)) - new.x.size * jnp.log(new.alpha / old.alpha)
    log_densities = y0.log_densities + flow + missed + eighth * (before - heats) / new.x.size
    there = there._replace(local=new._replace(log_densities=log_densities))
    standing = Standing(there, curvature, debt, u0, before, jnp.array(False))
    return y1._replace(log_densities=log_densities), standing
