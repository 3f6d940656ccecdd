"""Differences between log-densities of data along two routes, measured on a checkpoint."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dgjax.checkpoints.opened import Model
from dgjax.devices.batches import map_batches
from dgjax.evaluation.batched import SolverSettings
from dgjax.evaluation.reference_data import ReferenceData
from dgjax.evaluation.route_gap import (
    RouteGap,
    RouteGapStatistics,
    one_evaluation_gap,
    route_gap,
    route_gap_statistics,
)
from dgjax.model.coloured_probes import Coloured
from dgjax.model.energy import energy_of, normalize
from dgjax.pictures.latents import from_pictures
from dgjax.sampling.time_grids import grid_logsnr

__all__ = ["measure_one_evaluation_gap", "measure_route_gap", "route_probes"]

LEAST_STEPS = 6  # of a route, whose points are differentiated


def route_probes(probes: int, size: int) -> Coloured:
    """Return the estimator with at most so many products with the Jacobian at a point.

    It makes two estimates, whose difference says how noisy they are: a line has no solver that
    would know.
    """
    return Coloured(max(1, min(probes // 2, size)), 2)


def measure_route_gap(
    model: Model,
    reference: ReferenceData,
    num: int,
    settings: SolverSettings,
    confidence: float,
) -> RouteGapStatistics:
    """Measure by how much log-densities of data with the noise of t_min depend on the route.

    Args:
        model: the model.
        reference: the data, of which the first `num` samples are used.
        num: number of samples.
        settings: of the solver.
        confidence: of the intervals, in (0, 1).
    """
    gaps = _gaps("two routes", route_gap, model, reference, num, settings)
    return route_gap_statistics(gaps, confidence=confidence)


def measure_one_evaluation_gap(
    model: Model,
    reference: ReferenceData,
    num: int,
    settings: SolverSettings,
    confidence: float,
) -> RouteGapStatistics:
    """Measure by how much one evaluation of an energy model differs from the PF-ODE.

    The constant of the energy is measured first, with each condition that occurs.

    Args:
        model: an energy model.
        reference: the data, of which the first `num` samples are used.
        num: number of samples.
        settings: of the solver.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: if the model is no energy model.
    """
    labels, key = reference.conditions(num), jax.random.key(settings.seed)
    run = jax.jit(lambda field, cond: normalize(field, key, model.meta.shape, cond=cond).model)
    if labels is None:
        constants = jnp.full(num, energy_of(run(model.field, None)).log_normalizer)
    else:
        kinds, rows = np.unique(np.asarray(labels), return_inverse=True)
        found = [energy_of(run(model.field, jnp.asarray(k))).log_normalizer for k in kinds]
        constants = jnp.stack(found)[rows]
    gaps = _gaps("one evaluation", one_evaluation_gap, model, reference, num, settings)
    already = energy_of(model.field).log_normalizer
    gaps = gaps._replace(gap=gaps.gap - (constants - already))
    return route_gap_statistics(gaps, confidence=confidence)


def _gaps(
    what: str,
    gap: Callable[..., RouteGap],
    model: Model,
    reference: ReferenceData,
    num: int,
    settings: SolverSettings,
) -> RouteGap:
    """Return `gap` of the first `num` data, with (n,) leaves."""
    divergence = route_probes(settings.probes, model.size)
    grid = grid_logsnr(model.field, max(settings.steps, LEAST_STEPS))
    x, labels = from_pictures(model, reference.samples(0, num)), reference.conditions(num)

    @jax.jit
    def run(field, batch):
        def one(x, key, label):
            keys = jax.random.split(key)
            noise = jax.random.normal(keys[0], x.shape, x.dtype)
            options = {"divergence": divergence, "cond": label, "solver": settings.solver}
            return gap(field, x, noise, grid, key=keys[1], **options)

        return jax.vmap(one)(*batch)

    items = (x, jax.random.split(jax.random.key(settings.seed), num), labels)
    return map_batches(what, run, items, settings.batch, model.field)
