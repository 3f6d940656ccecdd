"""Metrics of a checkpoint: each function measures one on data or on samples.

All return estimates with confidence intervals. Noise levels are sigma/alpha.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, all_leaves

from dgjax.checkpoints.opened import Model
from dgjax.devices.batches import map_batches
from dgjax.devices.progress import console
from dgjax.evaluation.alignment import alignment_statistics
from dgjax.evaluation.batched import SolverSettings, measure_alignments
from dgjax.evaluation.features import Features
from dgjax.evaluation.frechet import frechet_distance, frechet_interval
from dgjax.evaluation.inconsistency import (
    InconsistencyStatistics,
    inconsistency,
    inconsistency_statistics,
)
from dgjax.evaluation.intervals import Estimate, mean_interval
from dgjax.evaluation.normality import Normality, h_statistic, normality
from dgjax.evaluation.precision_recall import precision_recall
from dgjax.evaluation.reference_data import ComparedSets, ReferenceData
from dgjax.model.divergence import Hutchinson
from dgjax.pictures.latents import from_pictures
from dgjax.pictures.png import encode_png

__all__ = [
    "Metric",
    "measure_aligned_share",
    "measure_distances",
    "measure_inconsistency",
    "measure_normality",
    "measure_png_bytes",
]


class Metric(NamedTuple):
    """One measured number.

    Attributes:
        estimate: the number with its confidence interval.
        number: how many samples, images or latents it was measured on.
        real: the same metric with other real samples in place of the generated ones, if known.
        probe_error: standard error from the Hutchinson probes alone, if there are any.
        solver_error: mean size of the errors from the solver, if it knows them.
    """

    estimate: Estimate
    number: int
    real: float | None = None
    probe_error: float | None = None
    solver_error: float | None = None


def measure_distances(
    sets: ComparedSets,
    features: Features,
    names: set[str],
    settings: SolverSettings,
    confidence: float,
) -> dict[str, Metric]:
    """Measure Fréchet distance, precision and recall between generated and real samples.

    Args:
        sets: the samples.
        features: the feature space.
        names: "frechet", "precision-recall" or both; others are ignored.
        settings: of the solver; its batch size and seed are used.
        confidence: of the intervals, in (0, 1).

    Returns:
        Metrics by name: "frechet_distance", "precision", "recall".
    """
    metrics: dict[str, Metric] = {}
    if not {"frechet", "precision-recall"} & names:
        return metrics
    # A plain function cannot be an argument of `jit`; a `Partial` of it can.
    called = Partial(features) if all_leaves([features]) else features
    run = jax.jit(lambda f, x: f(x))

    def map_features(x):
        scaled = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x
        return map_batches("features", run, scaled, settings.batch, called)

    count = len(sets.generated)
    generated, real = map_features(sets.generated), map_features(sets.real)
    others = None if sets.others is None else map_features(sets.others)
    if "frechet" in names:
        with console.status("Fréchet distance"):
            estimate = frechet_interval(generated, real, confidence=confidence, seed=settings.seed)
            floor = None if others is None else frechet_distance(others, real)
        metrics["frechet_distance"] = Metric(estimate, count, floor)
    if "precision-recall" in names:
        with console.status("precision and recall"):
            found = precision_recall(generated, real, confidence=confidence)
            best = None if others is None else precision_recall(others, real)
        for name in ("precision", "recall"):
            value = None if best is None else getattr(best, name).value
            metrics[name] = Metric(getattr(found, name), count, value)
    return metrics


def measure_png_bytes(sets: ComparedSets, confidence: float) -> Metric:
    """Measure the mean size, in bytes, of generated and of real images as 8-bit PNG files.

    Args:
        sets: uint8 levels of images.
        confidence: of the interval, in (0, 1).
    """
    both = (sets.generated, sets.real)
    generated, real = (np.array([len(encode_png(levels)) for levels in part]) for part in both)
    estimate = mean_interval(generated, confidence=confidence)
    return Metric(estimate, len(generated), float(np.mean(real)))


def measure_aligned_share(
    model: Model,
    reference: ReferenceData,
    num: int,
    settings: SolverSettings,
    confidence: float,
) -> Metric:
    """Measure the share of latents with score alignment, <s, pushed prior score> > 0 at t_min.

    Args:
        model: the model.
        reference: the data, whose labels a class-conditional model is given.
        num: number of latents.
        settings: of the solver.
        confidence: of the interval, in (0, 1).
    """
    alignments = measure_alignments(model, num, reference.conditions(num), settings)
    found = alignment_statistics(alignments, confidence=confidence)
    return Metric(Estimate(found.share, found.low, found.high), found.latents)


def measure_normality(
    model: Model,
    reference: ReferenceData,
    num: int,
    noise_levels: int,
    settings: SolverSettings,
    confidence: float,
) -> list[tuple[float, Normality]]:
    """Measure the normality of the statistic h on noisy data, at several noise levels.

    Args:
        model: the model.
        reference: the data, of which the first `num` samples are used.
        num: number of samples.
        noise_levels: number of noise levels, with equal ratios from t_min to t_max.
        settings: of the solver; its number of probes, batch size and seed are used.
        confidence: of the intervals, in (0, 1).

    Returns:
        Each noise level sigma/alpha with what was measured there.
    """
    divergence = Hutchinson(settings.probes)

    def one(field, t, x, key, label):
        return h_statistic(field, t, x, divergence=divergence, key=key, cond=label)

    levels = _at_noise_levels("h", one, model, reference, num, noise_levels, settings)
    return [
        (level, normality(estimates, confidence=confidence, seed=settings.seed))
        for level, estimates in levels
    ]


def measure_inconsistency(
    model: Model,
    reference: ReferenceData,
    num: int,
    noise_levels: int,
    settings: SolverSettings,
    confidence: float,
) -> list[tuple[float, InconsistencyStatistics]]:
    """Measure the inconsistency of the score on the same noisy data as `measure_normality`.

    Args:
        model: the model.
        reference: the data, of which the first `num` samples are used.
        num: number of samples.
        noise_levels: number of noise levels, with equal ratios from t_min to t_max.
        settings: of the solver; its batch size and seed are used.
        confidence: of the intervals, in (0, 1).

    Returns:
        Each noise level sigma/alpha with what was measured there.
    """

    def one(field, t, x, key, label):
        return inconsistency(field, t, x, key=key, cond=label)

    levels = _at_noise_levels("inconsistency", one, model, reference, num, noise_levels, settings)
    return [
        (level, inconsistency_statistics(points, confidence=confidence)) for level, points in levels
    ]


def _at_noise_levels(
    what: str,
    one: Callable[..., Any],
    model: Model,
    reference: ReferenceData,
    num: int,
    noise_levels: int,
    settings: SolverSettings,
) -> Iterator[tuple[float, Any]]:
    """Yield each noise level and `one(field, t, noisy x, key, label)` over `num` data."""
    facts, labels = model.facts(), reference.conditions(num)
    x = from_pictures(model, reference.samples(0, num))

    @jax.jit
    def run(field, t, batch):
        def noisy(x, key, label):
            keys = jax.random.split(key)
            eps = jax.random.normal(keys[0], x.shape, x.dtype)
            x = field.path.alpha(t) * x + field.path.sigma(t) * eps
            return one(field, t, x, keys[1], label)

        return jax.vmap(noisy)(*batch)

    for i, level in enumerate(np.geomspace(facts["t_min"], facts["t_max"], noise_levels).tolist()):
        t = model.field.path.time(jnp.asarray(-2 * np.log(level), jnp.float32))
        key = jax.random.fold_in(jax.random.key(settings.seed), i)
        items = (x, jax.random.split(key, num), labels)
        title = f"{what} at {level:.3g}"
        yield level, map_batches(title, run, items, settings.batch, model.field, t)
