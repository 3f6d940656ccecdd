"""Records that a solve carries from step to step."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.model.local import Local
from dgjax.typing import Sample, Scalar

__all__ = ["Evaluation", "Node", "Stage", "Start", "State", "zeros_of"]


def zeros_of(x: Sample, shape: tuple[int, ...] = ()) -> Array:
    """Return zeros that JAX takes to depend on `x`.

    Under `vmap` they have the batch axis from the start. A scan that starts with constants, and
    goes on with a batch in their place, would be traced twice. Values and derivatives are those
    of zeros.

    Args:
        x: one sample of any shape, which gives the dtype.
        shape: of the zeros.
    """
    zero = jnp.where(jnp.zeros((), bool), jnp.ravel(x)[0], jnp.zeros((), x.dtype))
    return jnp.broadcast_to(zero, shape)


class Node(NamedTuple):
    """Numbers that the log-density of a trajectory is integrated from, at one point of it.

    Attributes:
        u: w^(1/7), with w = sigma/alpha.
        rates: (m,) rate of (C) along the drift per unit of u, in nats.
        norm_rate: |sigma s|^2 dlog w/du, which is as smooth as the rates, without probes.
        residuals: (3,) gains of log p along the residuals of the last three steps, newest first, by
            interpolation through four points. Before there are so many steps, any finite numbers.
        few_residuals: (3,) the same through three points.
    """

    u: Scalar
    rates: Float[Array, " m"]
    norm_rate: Scalar
    residuals: Float[Array, " 3"]
    few_residuals: Float[Array, " 3"]


class Start(NamedTuple):
    """The start of a step of `Multistep`, where it evaluated the model.

    Attributes:
        x: the sample there.
        node: numbers for the log-density.
    """

    x: Sample
    node: Node


class Evaluation(NamedTuple):
    """One evaluation of the model and of all guides.

    Attributes:
        drift: dx/dt after all guides, of the shape of x.
        local: what the model says at (t, x).
        at_bound: 1 if a guide is stopped by its bound here, else 0.
        denoised_rate: derivative of the denoised sample in time along the drift, of the shape of
            x; None where the solver does not use it.
    """

    drift: Sample
    local: Local
    at_bound: Scalar
    denoised_rate: Sample | None = None


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
        start: the start of the last step. Only `Multistep` keeps it.
        stage: what the error of a step is found from. Only Runge-Kutta methods have it, and only
            within a step.
    """

    x: Sample
    log_densities: Float[Array, " m"]
    score_integral: Scalar
    bound_integral: Scalar
    start: Start | None = None
    stage: Stage | None = None
