"""Samples, score alignment and log-densities of a checkpoint, computed in batches.

Every function compiles one program for a batch of fixed size and spreads it over the local
devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike

from dgjax.checkpoints.opened import Model
from dgjax.devices.batches import map_batches
from dgjax.evaluation.alignment import Alignment, align
from dgjax.model.divergence import Untracked
from dgjax.model.field import Field, denoise
from dgjax.model.prior import prior_sample
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import Solver, default_divergence
from dgjax.sampling.time_grids import grid_from_data, grid_logsnr

__all__ = [
    "SolverSettings",
    "denoise_samples",
    "measure_alignments",
    "measure_log_densities",
    "sample_model",
]


# (num,), one label for each sample; None without conditions.
Labels = ArrayLike | None


class SolverSettings(NamedTuple):
    """Settings of the solver that all measurements of one evaluation share.

    Attributes:
        steps: solver steps, uniform in log-SNR.
        solver: the solver.
        probes: Hutchinson probes per step.
        batch: samples in one compiled call, on all devices together.
        seed: of everything random.
    """

    steps: int
    solver: Solver
    probes: int
    batch: int
    seed: int


def sample_model(model: Model, num: int, labels: Labels, settings: SolverSettings) -> np.ndarray:
    """Draw samples at t_min without a guide.

    Args:
        model: the model.
        num: number of samples.
        labels: (num,) class labels, or None.
        settings: of the solver.

    Returns:
        (num, *shape) samples.
    """
    keys = jax.random.split(jax.random.key(settings.seed), (2, num))

    def one(field, grid, solver, latent, key, label):
        return sample(
            field, latent, grid, key=key, divergence=Untracked(), cond=label, solver=solver
        ).x

    items = (_latents(model, keys[0]), keys[1], labels)
    return _in_batches("sampling", one, model, items, settings)


def denoise_samples(
    model: Model, x: np.ndarray, labels: Labels, settings: SolverSettings
) -> np.ndarray:
    """Return the mean of the clean data given samples at t_min: one step of the denoiser.

    Args:
        model: the model.
        x: samples (n, *shape) at t_min.
        labels: (n,) class labels, or None.
        settings: of the solver, of which the batch is used.
    """

    def one(field, grid, solver, x, label):
        return denoise(field, field.t_min, x, label)

    return _in_batches("denoising", one, model, (x, labels), settings)


def measure_alignments(
    model: Model, num: int, labels: Labels, settings: SolverSettings
) -> Alignment:
    """Measure the score alignment of latents drawn from the prior.

    Args:
        model: the model.
        num: number of latents.
        labels: (num,) class labels, or None.
        settings: of the solver.

    Returns:
        `Alignment` whose leaves are (num, ...).
    """
    keys = jax.random.split(jax.random.key(settings.seed), (2, num))
    divergence = default_divergence(settings.probes, settings.solver, model.size)

    def one(field, grid, solver, latent, key, label):
        return align(field, latent, grid, key=key, divergence=divergence, cond=label, solver=solver)

    items = (_latents(model, keys[0]), keys[1], labels)
    return _in_batches("alignment", one, model, items, settings)


def measure_log_densities(
    model: Model, x: Array, keys: Array, labels: Labels, settings: SolverSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute log p(x) at t_min by the probability-flow ODE.

    Args:
        model: the model.
        x: (n, *shape) samples.
        keys: (n,) keys for the probes.
        labels: (n,) class labels, or None.
        settings: of the solver.

    Returns:
        Log-densities (n,) in nats, their standard errors (n,) from the probes, and their errors
        (n,) from the solver, infinite if it does not know them.
    """
    divergence = default_divergence(settings.probes, settings.solver, model.size)

    def one(field, grid, solver, x, key, label):
        found = likelihood(
            field, x, grid, key=key, divergence=divergence, cond=label, solver=solver
        )
        return found.log_density, found.info.standard_error, found.info.solver_error

    return _in_batches("likelihood", one, model, (x, keys, labels), settings, grid_from_data)


def _latents(model: Model, keys: Array) -> Array:
    return jax.vmap(lambda key: prior_sample(model.field, key, model.meta.shape))(keys)


def _in_batches(
    what: str,
    one: Callable[..., Any],
    model: Model,
    items: Any,
    settings: SolverSettings,
    make_grid: Callable[[Field, int], Array] = grid_logsnr,
) -> Any:
    solver, grid = settings.solver, make_grid(model.field, settings.steps)

    @jax.jit
    def run(field, batch):
        return jax.vmap(lambda *item: one(field, grid, solver, *item))(*batch)

    return map_batches(what, run, items, settings.batch, model.field)
