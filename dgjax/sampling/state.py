"""Records that a solve carries from step to step."""

from typing import NamedTuple

from jaxtyping import Array, Float

from dgjax.model.local import Local
from dgjax.typing import Sample, Scalar

__all__ = ["Evaluation", "Node", "Stage", "State"]


class Node(NamedTuple):
    """Values that identity (C) needs at one point of a smooth trajectory.

    Attributes:
        score: gradient of log p_t at x, of the shape of x.
        divergences: (m,) estimates of div u, per unit of time.
        slope: dy/d log w along the drift, with y = x/alpha and w = sigma/alpha.
    """

    score: Sample
    divergences: Float[Array, " m"]
    slope: Sample


class Evaluation(NamedTuple):
    """One evaluation of the model and of all guides.

    Attributes:
        drift: dx/dt after all guides, of the shape of x.
        local: what the model says at (t, x).
        at_bound: 1 if a guide is stopped by its bound here, else 0.
    """

    drift: Sample
    local: Local
    at_bound: Scalar


class Stage(NamedTuple):
    """Values at the stages of a Runge-Kutta step, each times dt, for the error of the step.

    Attributes:
        score: gradient of log p_t at x, of the shape of x.
        alpha: scale of the data.
        sigma: standard deviation of the noise.
        logsnr: log(alpha^2/sigma^2).
        heat: rate of sigma^2 (Lap log p_t + |s|^2) d log w, with w = sigma/alpha, in nats.
    """

    score: Sample
    alpha: Scalar
    sigma: Scalar
    logsnr: Scalar
    heat: Scalar


class State(NamedTuple):
    """The variables that a solver integrates.

    The two integrals run over the log-SNR from the start of the solve; against it they are
    negative.

    Attributes:
        x: the sample, of any shape.
        log_densities: (m,) tracked log p_t(x) in nats, one by each divergence estimate.
        score_integral: of |sigma s|^2, without units.
        bound_integral: of 1 where a guide is stopped by its bound and 0 elsewhere, in units of
            log-SNR.
        node: what was known at the start of the last step. Only `Multistep` keeps it.
        stage: what the error of a step is found from. Only Runge-Kutta methods have it, and only
            within a step.
    """

    x: Sample
    log_densities: Float[Array, " m"]
    score_integral: Scalar
    bound_integral: Scalar
    node: Node | None = None
    stage: Stage | None = None
