r"""Exponential Euler steps with noise along the level set of log p_t: one evaluation per step.

In coordinates p = x/sigma the score is e = sigma s, and H is the Hessian of log p in p. Where the
noise is much larger than the data, e is close to -p at every noise level: the drift then leaves p
unchanged, and level sets are spheres.

**State.** First the guided drift, by one exponential Euler step as in `dgjax.sampling.multistep`.
Then the noise z, tangent to the level set (<z, e> = 0), which is bent along an ellipse with the
curvature c = -<z, H z>/|z|^2 of log p along z (c <= 1 always) and with curvature 1 along e:

    displacement = sin(a)/a z + (1 - cos a) e,    a = sqrt(c) |z|/|e|.

For small steps this is the Ito correction of the projected noise, identity (B) of
`dgjax.guidance.noise`. c comes from the step before, by the change of e. What that step missed of
the log-density asked for (its deficit) is added on the next step along the new normal, so that
errors of c do not accumulate.

**Log-density.** That of the point reached: identity (C) of `dgjax.sampling.spacetime_identity`
along the probability flow of the model, and <e, displacement> for the rest of the step. With e0, e1
at both ends, and the displacement taken as if made half-way through the step,

    gain = <(e0 + e1)/2, displacement> + |displacement|^2 (c1 - c0)/8,

where here c = -sigma^2 Lap log p/D. The last term is the change of H by the flow meanwhile: for a
Gaussian the flow changes e by (I + H) e and H by 2 (H + H^2) per unit of log w, whence 1/8. (A
change of c by the displacement itself would ask for 1/12.) Without it the order is 1 as well, but
the error is a bias, and 3 to 60 times as large on mixtures.

**Error.** The tracked gain is in error mostly by what the two integrals of a step leave out. The
one along the noise is compared with the same with c measured along the noise, as far as that
changed: |displacement|^2 (c1 - c0)/8. The one along the flow is compared with that through two
points only, with |e|^2 in place of -sigma^2 Lap log p, since a difference of divergences would be
mostly noise of their probes. Half of the sum of the two serves as the error of the step.

**Steps.** `init` evaluates at the start. `predict` makes the step and predicts log-densities;
`correct` takes the evaluation at the point reached and corrects them.

**Names.** `displacement.total` and `displacement.noise` are all of the displacement and its part
along z; `curvature` is c; `laplacians` is sigma^2 Lap log p by each divergence estimate.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.guidance.guide import score_weight
from dgjax.guidance.noise import LevelSetNoise
from dgjax.model.local import Local
from dgjax.model.paths import Path, coefficients
from dgjax.sampling.error_sums import ErrorSums
from dgjax.sampling.interpolation import dlog_w_du, quadrature, u_of_logsnr, weights
from dgjax.sampling.solver_quadrature import residual_gain
from dgjax.sampling.state import Evaluation, State
from dgjax.typing import Sample, Scalar, inner

__all__ = ["Displacement", "History", "correct", "init", "predict"]

ETA_RANGE = (1e-6, 2.0)  # of the linear part of the drift
ANGLE_MAX = 0.5 * np.pi  # along the ellipse
DEFICIT_MAX = 0.375  # of |e|^2 nats in one step: half-way to the maximum if the curvature is 1


class History(NamedTuple):
    """The last evaluation, and what is kept of the step that led to it.

    Attributes:
        evaluation: of the model and the guides at the current point.
        curvature: c along the noise of the last step.
        deficit: nats asked for by the guides so far and not yet gained.
        previous_u: u = w^(1/7) at the point before.
        previous_laplacians: (m,) sigma^2 Lap log p there.
        previous_norm2: |e|^2 there.
        first: True before the first step, when there is no point before.
        errors: sums of the errors of the log-density so far.
    """

    evaluation: Evaluation
    curvature: Scalar
    deficit: Scalar
    previous_u: Scalar
    previous_laplacians: Float[Array, " m"]
    previous_norm2: Scalar
    first: Array
    errors: ErrorSums


class Displacement(NamedTuple):
    """One step without its drift, in p = x/sigma.

    Attributes:
        total: all of it, of the shape of x.
        noise: the part along the noise.
    """

    total: Sample
    noise: Sample


def init(evaluation: Evaluation) -> History:
    """Return the history before the first step, at t_max: curvature 1 and no deficit.

    Args:
        evaluation: of the model and the guides at the start.
    """
    local = evaluation.local
    one, laplacians = jnp.ones((), local.x.dtype), _laplacians(local)
    u = u_of_logsnr(local.logsnr).astype(one.dtype)
    return History(
        evaluation=evaluation,
        curvature=one,
        deficit=0 * one,
        previous_u=2 * u,
        previous_laplacians=jnp.zeros_like(laplacians),
        previous_norm2=0 * one,
        first=jnp.array(True),
        errors=ErrorSums.zero(one),
    )


def _laplacians(local: Local) -> Float[Array, " m"]:
    """sigma^2 Lap log p by each divergence estimate: d log p/d log w along the flow, by (C)."""
    return 2 * local.sigma**2 * (local.x.size * local.f - local.divergences) / local.g2


def _guided_rate(evaluation: Evaluation) -> Scalar:
    """Rate d log p/d log w of the guides alone, in nats."""
    drift, local = evaluation.drift, evaluation.local
    return 2 * inner(drift - local.velocity, local.score) * local.sigma**2 / local.g2


def _flow_gain(history: History, u0: Scalar, u1: Scalar, *last: tuple[Scalar, Array]) -> Array:
    """Integrals of sigma^2 Lap log p d log w from u0 to u1, by interpolation.

    Through the current point, the one before and, where it is known, the `last` one.
    """
    current = u0, _laplacians(history.evaluation.local)
    points = [*last, current, (history.previous_u, history.previous_laplacians)]
    us = jnp.stack([u for u, _ in points])
    valid = jnp.ones(us.shape, bool).at[-1].set(~history.first)
    weight = weights(us, valid, u0, u1, dlog_w_du)
    return weight @ jnp.stack([laplacians for _, laplacians in points])


def predict(
    path: Path, history: History, state: State, noise: LevelSetNoise, dt: Scalar, dW: Sample
) -> tuple[State, Displacement]:
    """Take one step, and predict the log-densities at its end.

    Args:
        path: of the model.
        history: at the start of the step.
        state: at the start of the step.
        noise: along the level set.
        dt: length of the step in the model's own time.
        dW: Gaussian noise of variance |dt| per element.

    Returns:
        The state at the end, and the displacement by the noise.
    """
    drift, local, at_bound, _ = history.evaluation
    end = coefficients(path, local.t + dt)
    passed = end.logsnr - local.logsnr
    dlog_w = -0.5 * passed
    e = local.sigma * local.score

    # All of the drift along the score belongs to the linear part, as in `multistep`.
    dt_dlog_w = 2 * local.sigma**2 / local.g2
    guided = drift - local.velocity
    eta = jnp.clip(score_weight(drift, local), *ETA_RANGE)
    slope = (guided * dt_dlog_w - local.sigma**2 * local.score) / local.alpha
    y = local.x / local.alpha + jnp.expm1(eta * dlog_w) / eta * slope

    # g^2 |dt|/sigma^2 is the change of log-SNR if that is linear in t. Noise of the true change:
    scale = jnp.sqrt(jnp.abs(passed / (local.g2 * dt)))
    z = scale * noise.increment(local, dt, dW)
    displacement = _bend(history, z, e, local.sigma**2 * local.score_norm2)

    u0, u1 = u_of_logsnr(local.logsnr), u_of_logsnr(end.logsnr)
    flow = _flow_gain(history, u0, u1) - local.x.size * jnp.log(end.alpha / local.alpha)
    asked = _guided_rate(history.evaluation) * dlog_w + history.deficit
    predicted = state._replace(
        x=end.alpha * y + end.sigma * displacement.total,
        log_densities=state.log_densities + flow + asked,
        score_integral=state.score_integral + passed * jnp.sum(e**2),
        bound_integral=state.bound_integral + passed * at_bound,
    )
    return predicted, displacement


def _bend(history: History, z: Sample, e: Sample, norm2: Scalar) -> Displacement:
    """Bend the noise z along the level set, and make up for the deficit along the normal.

    `norm2` is |e|^2, kept off zero.
    """
    curvature = history.curvature
    angle2 = curvature * jnp.sum(z**2) / norm2
    full = jnp.sqrt(jnp.maximum(angle2, jnp.finfo(z.dtype).eps ** 2))
    angle = jnp.minimum(full, ANGLE_MAX)
    shrink = jnp.sin(angle) / full
    normal = jnp.cos(angle) * e - curvature * shrink * z
    normal2 = jnp.maximum(jnp.sum(normal**2), jnp.finfo(z.dtype).eps ** 2)
    lack = jnp.clip(history.deficit / normal2, -DEFICIT_MAX, DEFICIT_MAX)
    push = 2 * lack / (1 + jnp.sqrt(1 - 2 * lack))  # the root of push - push^2/2 = lack
    along = shrink * z
    return Displacement(along + (1 - jnp.cos(angle)) * e + push * normal, along)


def correct(
    history: History,
    state: State,
    predicted: State,
    displacement: Displacement,
    evaluation: Evaluation,
) -> tuple[State, History]:
    """Correct the log-densities with the evaluation at the end of the step.

    Args:
        history: at the start of the step.
        state: at the start of the step.
        predicted: the state at its end, from `predict`.
        displacement: of the step, from `predict`.
        evaluation: of the model and the guides at `predicted`.

    Returns:
        The state at the end with corrected log-densities, and the history there.
    """
    old, new = history.evaluation.local, evaluation.local
    u0, u1 = u_of_logsnr(old.logsnr), u_of_logsnr(new.logsnr)
    dlog_w = -0.5 * (new.logsnr - old.logsnr)
    e0, e1 = old.sigma * old.score, new.sigma * new.score
    data = jnp.stack([(a.x + a.sigma**2 * a.score) / a.alpha for a in (old, new)])
    weigh = quadrature(jnp.stack([u0, u1]), jnp.ones(2, bool), u0, u1)
    ys = old.x / old.alpha, new.x / new.alpha
    residual = residual_gain(weigh, (u0, u1), ys, data, -jnp.stack([e0, e1]))
    eighth = jnp.sum(displacement.total**2) / 8

    # Measured along the noise: guides then do not depend on whether divergences are estimated.
    noise2 = jnp.sum(displacement.noise**2)
    measured = -inner(e1 - e0, displacement.noise) / jnp.where(noise2 == 0, 1, noise2)
    curvature = jnp.where(noise2 == 0, history.curvature, jnp.clip(measured, 0, 1))
    along_noise = eighth * (curvature - history.curvature)
    gained = residual + along_noise
    asked = 0.5 * (_guided_rate(history.evaluation) + _guided_rate(evaluation)) * dlog_w
    deficit = history.deficit + asked - gained

    before, after = _laplacians(old), _laplacians(new)
    flow = _flow_gain(history, u0, u1, (u1, after)) - new.x.size * jnp.log(new.alpha / old.alpha)
    change = eighth * (before - after) / new.x.size
    log_densities = state.log_densities + flow + residual + change
    evaluation = evaluation._replace(local=new._replace(log_densities=log_densities))
    norms = tuple(jnp.sum(e**2) for e in (e0, e1))
    along_flow = _third_point(history, (u0, u1), norms)
    history = History(
        evaluation=evaluation,
        curvature=curvature,
        deficit=deficit,
        previous_u=u0,
        previous_laplacians=before,
        previous_norm2=norms[0],
        first=jnp.array(False),
        errors=history.errors.add(0.5 * (along_noise + along_flow)),
    )
    return predicted._replace(log_densities=log_densities), history


def _third_point(history: History, us: tuple[Scalar, Scalar], norms: tuple[Array, ...]) -> Scalar:
    """Return the change of the integral of |e|^2 d log w by the point before; 0 if there is none.

    `us` and `norms` are u and |e|^2 at the start and at the end of the step.
    """
    points = jnp.stack([*us, history.previous_u])
    known = jnp.ones(3, bool).at[-1].set(~history.first)
    two = jnp.array([True, True, False])
    moved = weights(points, known, *us, dlog_w_du) - weights(points, two, *us, dlog_w_du)
    return moved @ jnp.stack([*norms, history.previous_norm2])
