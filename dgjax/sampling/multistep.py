r"""Multistep exponential integrators: one evaluation of the model per step.

**Formulas.** In scaled coordinates y = x/alpha, w = sigma/alpha the probability-flow ODE, guided or
not, is

    dy/d log w = eta y - N.

eta is the weight of the score in the drift (1 without guides), and N is all the rest (the denoised
x0 without guides). A step from w to w' holds eta fixed, solves the linear part exactly, and takes N
as a polynomial in u = w^(1/7) through its last k values:

    y(w') = (w'/w)^eta y(w) - integral of (w'/v)^eta N d log v from w to w'.

With eta = 1, k = 1 is DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 with sigma = 0), and k = 2
is DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2) with a polynomial in u where
theirs is in log w. At the bound of density guidance eta is 2: methods whose linear part has eta = 1
are unstable there at affordable numbers of steps.

**Correction.** The step to a point can be taken again when the model has been evaluated there, now
through the last k values with the newest among them. The next step starts from this corrected y,
and the model is not evaluated at it: so it costs nothing (UniPC, Zhao et al. 2023, arXiv
2302.04867). The points of the trajectory are those where the model was evaluated.

**Derivatives.** One product with the Jacobian of the network, in time and x, gives dx0/du along the
drift. N is eta x0 + R, and without guides R is 0. So x0 is taken as the Hermite polynomial through
its last values and derivatives (the Taylor steps of GENIE, Dockhorn et al. 2022, arXiv 2210.05475,
take one value and one derivative), and R, whose derivative is not known, as a polynomial
through as many values as there are of both.

The log-density follows by identity (A), d log p/dt = -div u + <v - u, s>: predicted over the step
by the same polynomial (Adams-Bashforth), and corrected on the next step, when one more evaluation
is known (Adams-Moulton), by the residual of `dgjax.sampling.solver_quadrature` too.

**Names.** `ys` is y, `slopes` is dy/d log w, so that N = eta y - slope; `noises` is -sigma s;
`rates` is d log p/du by (A); `order` is k.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgjax.guidance.guide import score_weight
from dgjax.model.local import Local
from dgjax.model.paths import Path, coefficients
from dgjax.sampling.interpolation import (
    RHO,
    dlog_w_du,
    hermite_weights,
    quadrature,
    u_of_logsnr,
)
from dgjax.sampling.solver_quadrature import (
    RESIDUAL_POINTS,
    residual_gain,
    residual_gains,
    weighted_sum,
)
from dgjax.sampling.spacetime_identity import log_density_gain
from dgjax.sampling.state import Evaluation, Node, Start, State, zeros_of
from dgjax.typing import Sample, Scalar, inner

__all__ = ["History", "Points", "empty_node", "init", "step"]

ETA_MAX = 2.0  # the largest eta of the linear part; the rest of it goes into N


class Points(NamedTuple):
    """Numbers of evaluations that a step uses.

    Attributes:
        order: that a step uses.
        correction: that the step before is corrected with, or 0.
        derivatives: of which the derivative is used: the newest for a step, all for a correction.
    """

    order: int
    correction: int
    derivatives: int


class History(NamedTuple):
    """The last k evaluations, newest first.

    Attributes:
        us: (k,) u = w^(1/7).
        ys: (k, *shape) y = x/alpha.
        slopes: (k, *shape) dy/d log w along the drift.
        noises: (k, *shape) -sigma s.
        denoised_rates: (n, *shape) d x0/du along the drift at the newest n, whose derivatives are
            used; None if there are none.
        rates: (k, m) d log p/du in nats, by each divergence estimate.
        log_densities: (m,) corrected log-densities at the newest point, in nats.
        anchor: y from which the last step was taken: that of its start, corrected; None where
            nothing is corrected.
        filled: how many of the k are there.
    """

    us: Float[Array, " k"]
    ys: Float[Array, "k ..."]
    slopes: Float[Array, "k ..."]
    noises: Float[Array, "k ..."]
    denoised_rates: Float[Array, "n ..."] | None
    rates: Float[Array, "k m"]
    log_densities: Float[Array, " m"]
    anchor: Sample | None
    filled: Scalar


def init(points: Points, x: Sample, log_densities: Float[Array, " m"]) -> History:
    """Return an empty history.

    Args:
        points: evaluations that are used. There is room for those that the residuals need.
        x: the sample at the start.
        log_densities: (m,) there.
    """
    most = max(points.order, points.correction)
    k = max(RESIDUAL_POINTS, most + points.derivatives)
    empty = zeros_of(x, (k, *x.shape))
    return History(
        us=jnp.zeros(k, x.dtype),
        ys=empty,
        slopes=empty,
        noises=empty,
        denoised_rates=empty[: points.derivatives] if points.derivatives else None,
        rates=zeros_of(x, (k, *log_densities.shape)).astype(log_densities.dtype),
        log_densities=zeros_of(x, log_densities.shape).astype(log_densities.dtype),
        anchor=zeros_of(x, x.shape) if points.correction else None,
        filled=jnp.zeros((), jnp.int32),
    )


def step(
    points: Points,
    path: Path,
    history: History,
    state: State,
    evaluation: Evaluation,
    dt: Scalar,
) -> tuple[State, History]:
    """Take one step.

    Args:
        points: evaluations that are used.
        path: of the model.
        history: the evaluations at earlier points.
        state: at the start of the step.
        evaluation: of the model and the guides there.
        dt: length of the step in the model's own time.

    Returns:
        The state at the end, with predicted log-densities, and the history with this evaluation.
    """
    local = evaluation.local
    end = coefficients(path, local.t + dt)
    u0, u1 = u_of_logsnr(local.logsnr), u_of_logsnr(end.logsnr)

    history, slope = _push(history, evaluation, u0)
    # Adams-Moulton needs two. With two, beside steps with derivatives, its own error would be most
    # of the error that is stated; with all that there are it would not differ from the quadrature.
    known = max(3 if points.derivatives else 2, points.order)
    log_densities = _correct(history, known, state.log_densities)
    history = history._replace(log_densities=log_densities)
    through = _quadratures(history, u0, u1)
    predicted = log_densities + through(points.order)() @ history.rates

    eta = jnp.clip(score_weight(evaluation.drift, local), 0, ETA_MAX)
    anchor = history.ys[0]
    if history.anchor is not None:
        first = history.filled == 1  # there is no step before, and its result is not used
        earlier = jnp.where(first, 2 * u0, history.us[1])
        using = points.correction, points.derivatives
        back = _quadratures(history, earlier, u0)
        corrected_y = _advance(history, history.anchor, using, eta, (earlier, u0), back)
        anchor = jnp.where(first, anchor, corrected_y)
        history = history._replace(anchor=anchor)
    using = points.order, min(points.derivatives, 1)
    y = _advance(history, anchor, using, eta, (u0, u1), through)
    passed = end.logsnr - local.logsnr
    score2 = jnp.sum((local.sigma * local.score) ** 2)
    state = state._replace(
        x=end.alpha * y,
        log_densities=predicted,
        score_integral=state.score_integral + passed * score2,
        bound_integral=state.bound_integral + passed * evaluation.at_bound,
        start=Start(local.x, _node(history, local, slope, score2)),
    )
    return state, history


def empty_node(x: Sample, log_densities: Float[Array, " m"]) -> Node:
    """Return a node before the first evaluation.

    Args:
        x: the sample at the start.
        log_densities: (m,) there.
    """
    u, three = jnp.zeros((), x.dtype), zeros_of(x, (3,))
    rates = zeros_of(x, log_densities.shape).astype(log_densities.dtype)
    return Node(u, rates, zeros_of(x), three, three)


def _advance(
    history: History,
    anchor: Sample,
    using: tuple[int, int],
    eta: Scalar,
    ends: tuple[Scalar, Scalar],
    through: Callable[[int], Callable[..., Array]],
) -> Sample:
    """Take y from the anchor to the end of an interval of u, with N as a polynomial.

    `using` are the numbers of points that it goes through, and of those with a derivative;
    `through` are the quadratures over the interval.
    """
    count, derivatives = using
    u0, u1 = ends
    us, rates = history.us, history.denoised_rates
    density = lambda u: (u1 / u) ** (RHO * eta) * dlog_w_du(u)
    decay = through(count + derivatives)(density)
    integral = weighted_sum(decay, eta * history.ys - history.slopes)
    if rates is not None and derivatives:
        # N = eta x0 + R, and the polynomial of x0 has the derivatives, too.
        chosen = _newest(history, count), _newest(history, derivatives)
        values, slopes = hermite_weights(us, *chosen, u0, u1, density)
        shaped = lambda a: a.reshape(-1, *[1] * anchor.ndim)
        x0 = history.ys - shaped(us**RHO) * history.noises
        change = weighted_sum(values - decay, x0)
        integral += eta * (change + weighted_sum(slopes[: len(rates)], rates))
    return (u1 / u0) ** (RHO * eta) * anchor - integral


def _newest(history: History, count: int) -> Array:
    """Return which points are the newest `count`, or all that there are."""
    index = np.arange(history.us.shape[0], dtype=history.filled.dtype)
    return jnp.minimum(history.filled, count) > index


def _quadratures(history: History, u0: Scalar, u1: Scalar) -> Callable[[int], Callable[..., Array]]:
    """Return a function of a number: the `quadrature` from u0 to u1 through as many newest points.

    Of one number it is made once.
    """
    return cache(lambda count: quadrature(history.us, _newest(history, count), u0, u1))


def _node(history: History, local: Local, slope: Sample, score2: Scalar) -> Node:
    u, dtype = history.us[0], history.us.dtype
    rates = log_density_gain(local, local.score, local.divergences, slope, jnp.ones((), dtype))
    data = history.ys - history.slopes
    gains = residual_gains(history.us, history.ys, data, history.noises, history.filled)
    node = Node(u, rates * dlog_w_du(u), score2 * dlog_w_du(u), *gains)
    return jax.tree.map(lambda a: a.astype(dtype), node)


def _push(history: History, evaluation: Evaluation, u: Scalar) -> tuple[History, Sample]:
    """The history with a new evaluation in front, and the dy/d log w of that evaluation."""
    drift, local = evaluation.drift, evaluation.local
    guided = drift - local.velocity
    dt_dlog_w = 2 * local.sigma**2 / local.g2
    slope = (guided * dt_dlog_w - local.sigma**2 * local.score) / local.alpha
    rates = (inner(guided, local.score) - local.divergences) * dt_dlog_w * dlog_w_du(u)
    push = lambda new, old: jnp.concatenate([new[None].astype(old.dtype), old[:-1]])
    denoised_rates = history.denoised_rates
    if denoised_rates is not None:
        assert evaluation.denoised_rate is not None
        new = evaluation.denoised_rate * dt_dlog_w * dlog_w_du(u)
        denoised_rates = push(new, denoised_rates)
    history = history._replace(
        us=push(u, history.us),
        ys=push(local.x / local.alpha, history.ys),
        slopes=push(slope, history.slopes),
        noises=push(-local.sigma * local.score, history.noises),
        denoised_rates=denoised_rates,
        rates=push(rates, history.rates),
        filled=history.filled + 1,
    )
    return history, slope


def _correct(history: History, known: int, start: Float[Array, " m"]) -> Float[Array, " m"]:
    """Log-densities at the newest point: the last step again, through the newest evaluations."""
    first = history.filled == 1
    u1 = history.us[0]
    u0 = jnp.where(first, 2 * u1, history.us[1])  # on the first step the result is not used
    weigh = quadrature(history.us, _newest(history, known), u0, u1)
    data = history.ys - history.slopes
    residual = residual_gain(weigh, (u0, u1), (history.ys[1], history.ys[0]), data, history.noises)
    gain = weigh() @ history.rates + residual
    return jnp.where(first, start, history.log_densities + gain)
