"""Checks of the closed-form log-density and its derivatives, by one evaluation of the model.

They use three times of the VP path, where sigma is 0.2, 0.7 and 0.998 and alpha is not 1.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from dgjax.check.finding import Finding, judge, largest, relative
from dgjax.check.oracle import BATCH, SIZE, Mixture, make_mixture
from dgjax.model.closed_form import closed_form
from dgjax.model.divergence import Divergence, Exact, Hutchinson
from dgjax.model.field import Field
from dgjax.model.gaussian_mixture import gaussian_mixture
from dgjax.model.local import evaluate
from dgjax.model.log_density import log_density
from dgjax.model.paths import vp
from dgjax.typing import Sample, as_float

__all__ = [
    "hutchinson_bias",
    "hutchinson_variance",
    "mixture_laplacian",
    "mixture_log_density",
    "mixture_score",
]

TIMES = (1 / 16, 1 / 4, 3 / 4)


class _Pass(NamedTuple):
    """Results at BATCH points: the closed-form log-density, the rest from one evaluation."""

    log_density: Array
    score: Array
    laplacian: Array
    divergences: Array


@jax.jit
def _passes(model: Field, t: Array, x: Array, divergence: Divergence) -> _Pass:
    def one(x: Sample) -> _Pass:
        local = evaluate(model, t, x, divergence=divergence, key=jax.random.key(0))
        exact = log_density(model, t, x)
        return _Pass(exact, local.score, local.laplacian, local.divergences)

    return jax.vmap(one)(x)


class _Point(NamedTuple):
    """BATCH points at one time of the path, the library's results there, and the true mixture."""

    x: np.ndarray
    found: _Pass
    truth: Mixture
    beta: float


def _point(t: float, divergence: Divergence) -> _Point:
    mixture = make_mixture()
    integral = t * (0.1 + 0.5 * 19.9 * t)
    truth = mixture.noisy(np.exp(-0.5 * integral), np.sqrt(-np.expm1(-integral)))
    x = truth.draw(np.random.default_rng(3), BATCH)
    model = closed_form(gaussian_mixture(*mixture), vp(0.1, 20.0), t_min=1e-3, t_max=1.0)
    found = _passes(model, as_float(t), as_float(x), divergence)
    return _Point(x, found, truth, 0.1 + 19.9 * t)


def mixture_log_density() -> Finding:
    """Check the closed-form log-density against SciPy."""
    points = [_point(t, Exact()) for t in TIMES]
    error = max(largest(np.asarray(p.found.log_density) - p.truth.log_density(p.x)) for p in points)
    # 4e-5 for log-densities near 100, whose last bit is 8e-6. TF32: 8e-3.
    return judge("log-density of a mixture, against SciPy: nats", error, 2e-4)


def mixture_score() -> Finding:
    """Check the score of one evaluation against float64."""
    points = [_point(t, Exact()) for t in TIMES]
    error = max(relative(p.found.score, p.truth.derivatives(p.x)[0]) for p in points)
    # 1.4e-6. TF32: 5e-4.
    return judge("its score: relative error", error, 5e-5)


def mixture_laplacian() -> Finding:
    """Check the Laplacian by products with the Hessian against float64."""
    points = [_point(t, Exact()) for t in TIMES]
    error = max(
        relative(p.found.laplacian, np.linalg.trace(p.truth.derivatives(p.x)[1])) for p in points
    )
    # 1.3e-6. TF32: 2e-3.
    return judge("its Laplacian by exact trace: relative error", error, 1e-5)


PROBES = 4096


def _laplacian_estimates() -> tuple[np.ndarray, np.ndarray]:
    """Estimate the Laplacian at one point with PROBES probes; return the true Hessian too."""
    point = _point(1 / 4, Hutchinson(PROBES))
    # div u = D f - g^2/2 Lap log p, with f = -beta/2 and g^2 = beta on this path.
    divergences = np.asarray(point.found.divergences[0], np.float64)
    laplacians = -SIZE - 2 * divergences / point.beta
    return laplacians, point.truth.derivatives(point.x)[1][0]


def hutchinson_bias() -> Finding:
    """Check that the mean over probes is the Laplacian."""
    estimates, hessian = _laplacian_estimates()
    error = np.std(estimates) / np.sqrt(PROBES)
    z = abs(np.mean(estimates) - np.trace(hessian)) / error
    # With the random numbers of another JAX version it exceeds 4 once in 16,000.
    return judge("Hutchinson's estimate: bias in standard errors", z, 4.0)


def hutchinson_variance() -> Finding:
    """Check that the variance over probes is 2 (|H|_F^2 - |diag H|^2)."""
    estimates, hessian = _laplacian_estimates()
    theory = 2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2))
    squares = (estimates - np.mean(estimates)) ** 2
    error = np.std(squares) / np.sqrt(PROBES)
    z = abs(np.mean(squares) - theory) / error
    return judge("its variance: distance from theory in standard errors", z, 4.0)
