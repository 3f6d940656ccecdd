"""The figures of `dgjax evaluate`, each from a model and the samples that it is compared with."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, all_leaves

from dgjax.checkpoints.opened import Model
from dgjax.devices.batches import batches
from dgjax.devices.progress import console
from dgjax.evaluation import (
    Estimate,
    Features,
    InconsistencyStatistics,
    Normality,
    frechet_distance,
    frechet_interval,
    h_statistic,
    inconsistency_statistics,
    mean_interval,
    normality,
    precision_recall,
)
from dgjax.evaluation.alignment import alignment_statistics
from dgjax.evaluation.inconsistency import inconsistency
from dgjax.evaluation.reference_data import Material, Sets
from dgjax.evaluation.batched import Settings, find_alignments, find_log_densities
from dgjax.model.divergence import Hutchinson
from dgjax.pictures.latents import from_pictures
from dgjax.pictures.quantization import bits_per_dim, dequantize, png_bytes

__all__ = [
    "Figure",
    "alignment",
    "bits",
    "distances",
    "h_by_level",
    "inconsistency_by_level",
    "sizes",
]


class Figure(NamedTuple):
    """One line of the table.

    Attributes:
        estimate: with its interval.
        number: of samples, images or latents that it is of.
        real: the same figure of other real images in the samples' place, or None.
        probe_error: standard error from the probes alone, where there are any.
    """

    estimate: Estimate
    number: int
    real: float | None = None
    probe_error: float | None = None


def bits(
    chosen: Model, material: Material, num: int, settings: Settings, confidence: float
) -> Figure:
    """Bits per dimension of the first `num` of the data, dequantized if they are levels."""
    keys = jax.random.split(jax.random.key(settings.seed), 2)
    data, rows = material.data, material.rows[:num]
    span, x = chosen.meta.data_range, jnp.asarray(data.batch(rows))
    if isinstance(data.values, np.ndarray) and data.values.dtype == np.uint8:
        span = (data.offset, data.offset + 255 * data.scale)  # whatever levels there are
        x = dequantize(keys[0], data.values[rows], span)
    solve_keys, labels = jax.random.split(keys[1], num), material.conditions(num)
    found, errors = find_log_densities(chosen, x, solve_keys, labels, settings)
    values = bits_per_dim(found, chosen.size, span)
    error = np.sqrt((errors**2).sum()) / (num * chosen.size * np.log(2))
    return Figure(mean_interval(values, confidence=confidence), num, probe_error=float(error))


def distances(
    sets: Sets,
    features: Features,
    names: set[str],
    settings: Settings,
    confidence: float,
) -> dict[str, Figure]:
    """Fréchet distance ("frechet"), precision and recall ("precision-recall"), as named."""

    # A plain function is no argument of `jit`; a partial of it is.
    called = Partial(features) if all_leaves([features]) else features
    run = jax.jit(lambda f, x: f(x))

    def find(x):
        scaled = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x
        return batches("features", run, scaled, settings.batch, called)

    figures: dict[str, Figure] = {}
    if not {"frechet", "precision-recall"} & names:
        return figures
    count = len(sets.generated)
    generated, real = find(sets.generated), find(sets.real)
    others = None if sets.others is None else find(sets.others)
    if "frechet" in names:
        with console.status("Fréchet distance"):
            estimate = frechet_interval(generated, real, confidence=confidence, seed=settings.seed)
            floor = None if others is None else frechet_distance(others, real)
        figures["frechet_distance"] = Figure(estimate, count, floor)
    if "precision-recall" in names:
        with console.status("precision and recall"):
            found = precision_recall(generated, real, confidence=confidence)
            best = None if others is None else precision_recall(others, real)
        for name in ("precision", "recall"):
            value = None if best is None else getattr(best, name).value
            figures[name] = Figure(getattr(found, name), count, value)
    return figures


def sizes(sets: Sets, confidence: float) -> Figure:
    """Bytes of the samples' 8-bit PNG, and those of the real images."""
    both = (sets.generated, sets.real)
    generated, real = (np.array([png_bytes(x, (0.0, 255.0)) for x in part]) for part in both)
    estimate = mean_interval(generated, confidence=confidence)
    return Figure(estimate, len(generated), float(np.mean(real)))


def alignment(
    chosen: Model, material: Material, num: int, settings: Settings, confidence: float
) -> Figure:
    """Share of aligned latents, as `dgjax align` finds it."""
    alignments = find_alignments(chosen, num, material.conditions(num), settings)
    found = alignment_statistics(alignments, confidence=confidence)
    return Figure(Estimate(found.share, found.low, found.high), found.latents)


def h_by_level(
    chosen: Model,
    material: Material,
    num: int,
    levels: int,
    settings: Settings,
    confidence: float,
) -> list[tuple[float, Normality]]:
    """Normality of h on the first `num` of the data, at noise levels sigma/alpha of equal ratio."""
    divergence = Hutchinson(settings.probes)

    def one(field, t, x, key, label):
        return h_statistic(field, t, x, divergence=divergence, key=key, cond=label)

    return [
        (level, normality(estimates, confidence=confidence, seed=settings.seed))
        for level, estimates in _by_level("h", one, chosen, material, num, levels, settings)
    ]


def inconsistency_by_level(
    chosen: Model,
    material: Material,
    num: int,
    levels: int,
    settings: Settings,
    confidence: float,
) -> list[tuple[float, InconsistencyStatistics]]:
    """Inconsistency of the score on the same noisy data as `h_by_level`."""

    def one(field, t, x, key, label):
        return inconsistency(field, t, x, key=key, cond=label)

    return [
        (level, inconsistency_statistics(points, confidence=confidence))
        for level, points in _by_level(
            "inconsistency", one, chosen, material, num, levels, settings
        )
    ]


def _by_level(
    what: str,
    one: Callable[..., Any],
    chosen: Model,
    material: Material,
    num: int,
    levels: int,
    settings: Settings,
) -> Iterator[tuple[float, Any]]:
    """Each noise level, and one(field, t, noisy x, key, label) over the first `num` of the data."""
    facts, labels = chosen.facts(), material.conditions(num)
    x = from_pictures(chosen, material.x(0, num))

    @jax.jit
    def run(field, t, batch):
        def noisy(x, key, label):
            keys = jax.random.split(key)
            eps = jax.random.normal(keys[0], x.shape, x.dtype)
            x = field.path.alpha(t) * x + field.path.sigma(t) * eps
            return one(field, t, x, keys[1], label)

        return jax.vmap(noisy)(*batch)

    for i, level in enumerate(np.geomspace(facts["t_min"], facts["t_max"], levels).tolist()):
        t = chosen.field.path.time(jnp.asarray(-2 * np.log(level), jnp.float32))
        key = jax.random.fold_in(jax.random.key(settings.seed), i)
        items = (x, jax.random.split(key, num), labels)
        title = f"{what} at {level:.3g}"
        yield level, batches(title, run, items, settings.batch, chosen.field, t)
