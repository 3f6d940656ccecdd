"""Solves that more than one command runs over batches of samples."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike

from dgjax.checkpoints.opened import Model
from dgjax.devices.batches import batches
from dgjax.evaluation.alignment import Alignment, align
from dgjax.model.divergence import Untracked
from dgjax.model.prior import prior_sample
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import Solver, default_divergence
from dgjax.sampling.time_grids import grid_logsnr

__all__ = ["Settings", "find_alignments", "find_log_densities", "find_samples"]


# (num,) of the samples, or None for no condition.
Labels = ArrayLike | None


class Settings(NamedTuple):
    """How a model is solved: options of the commands."""

    steps: int
    solver: Solver
    probes: int
    batch: int
    seed: int


def find_samples(chosen: Model, num: int, labels: Labels, settings: Settings) -> np.ndarray:
    """(num, *shape): samples at t_min without a guide; with a label each if `labels` is (num,)."""
    keys = jax.random.split(jax.random.key(settings.seed), (2, num))

    def one(field, grid, solver, latent, key, label):
        return sample(
            field, latent, grid, key=key, divergence=Untracked(), cond=label, solver=solver
        ).x

    items = (_latents(chosen, keys[0]), keys[1], labels)
    return _run("sampling", one, chosen, items, settings)


def find_alignments(chosen: Model, num: int, labels: Labels, settings: Settings) -> Alignment:
    """Score alignment of `num` latents, every leaf (num, ...)."""
    keys = jax.random.split(jax.random.key(settings.seed), (2, num))
    divergence = default_divergence(settings.probes, settings.solver, chosen.size)

    def one(field, grid, solver, latent, key, label):
        return align(field, latent, grid, key=key, divergence=divergence, cond=label, solver=solver)

    items = (_latents(chosen, keys[0]), keys[1], labels)
    return _run("alignment", one, chosen, items, settings)


def find_log_densities(
    chosen: Model, x: Array, keys: Array, labels: Labels, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """log p(x) in nats at t_min of every x (n, *shape), and its standard error from the probes."""
    divergence = default_divergence(settings.probes, settings.solver, chosen.size)

    def one(field, grid, solver, x, key, label):
        found = likelihood(
            field, x, grid, key=key, divergence=divergence, cond=label, solver=solver
        )
        return found.log_density, found.info.standard_error

    return _run("likelihood", one, chosen, (x, keys, labels), settings)


def _latents(chosen: Model, keys: Array) -> Array:
    return jax.vmap(lambda key: prior_sample(chosen.field, key, chosen.meta.shape))(keys)


def _run(what: str, one: Any, chosen: Model, items: Any, settings: Settings) -> Any:
    solver, grid = settings.solver, grid_logsnr(chosen.field, settings.steps)

    @jax.jit
    def run(field, batch):
        return jax.vmap(lambda *item: one(field, grid, solver, *item))(*batch)

    return batches(what, run, items, settings.batch, chosen.field)
