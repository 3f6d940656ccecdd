"""Checks of the solver's stated error, against the true error of tracked log-densities."""

import jax
import numpy as np
from jaxtyping import Array

from dgjax.check.finding import Finding, judge, rms
from dgjax.check.mixture_solves import latents_of, model_of, true_log_density
from dgjax.check.oracle import SIZE, make_mixture
from dgjax.guidance.density import density_guidance
from dgjax.model.divergence import Exact
from dgjax.model.field import Field
from dgjax.sampling.results import Sampled
from dgjax.sampling.sample import sample
from dgjax.sampling.time_grids import grid_logsnr
from dgjax.typing import as_float

__all__ = ["errors_covered", "errors_not_inflated"]

STEPS = 16  # so few that the solver's error is far above that of float32
QUANTILES = (0.3, 0.5, 0.7)


@jax.jit
def _samples(model: Field, latents: Array, grid: Array, quantiles: Array) -> Sampled:
    """Sample from every latent at every q, with the default solver."""
    key = jax.random.key(0)

    def one(q, x):
        guides = (density_guidance(q),)
        return sample(model, x, grid, key=key, guides=guides, divergence=Exact())

    return jax.vmap(lambda q: jax.vmap(lambda x: one(q, x))(latents))(quantiles)


def _errors() -> tuple[np.ndarray, np.ndarray]:
    """Return the true and the stated errors of the log-densities of a batch, in nats."""
    mixture = make_mixture()
    model = model_of(mixture)
    grid, quantiles = grid_logsnr(model, STEPS), as_float(np.asarray(QUANTILES))
    found = _samples(model, latents_of(mixture), grid, quantiles)
    truth = true_log_density(mixture, model, found.x.reshape(-1, SIZE))
    return np.abs(np.ravel(found.log_density) - truth), np.ravel(found.info.solver_error)


def errors_covered() -> Finding:
    """Check that the true error is within three times the stated one."""
    true, stated = _errors()
    # All of them: the stated error is 1.25 times the true one or more. At a tenth of it: 0.67.
    claim = f"error bars: share of {true.size} samples within three times the stated error"
    return judge(claim, float(np.mean(true <= 3 * stated)), 1.0, low=0.9)


def errors_not_inflated() -> Finding:
    """Check that the stated error is of the size of the true one."""
    true, stated = _errors()
    # 2.4
    claim = "their size: stated error over true one, RMS"
    return judge(claim, rms(stated) / rms(true), 15, low=0.5)
