"""The options --fitted and --fit-samples: log-densities of most samples by fitted weights."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from dgjax.devices.batches import map_batches
from dgjax.devices.progress import say
from dgjax.model.divergence import Divergence
from dgjax.model.field import Field
from dgjax.model.paths import logsnr
from dgjax.sampling.fitted_likelihood import fit_likelihood, fitted_likelihood, least_samples
from dgjax.sampling.time_grids import grid_logsnr
from dgjax.typing import Key

__all__ = ["FITTED", "FIT_SAMPLES", "choose_measured", "fit_rows", "take"]

USUAL_SAMPLES = 192
NOISE = 3.5  # where the grid starts, in standard deviations of the data
UNLIKE = 10.0  # leverage above which the stated error is rough
FITTED = Annotated[
    int | None,
    typer.Option(
        min=2,
        max=64,
        help="Measure some samples by --steps, and all others by weights fitted to these, in so "
        "many network evaluations each, such as 4. For many samples of one kind.",
        show_default="all by --steps",
    ),
]
FIT_SAMPLES = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="With --fitted: how many samples are measured by --steps.",
        show_default=f"{USUAL_SAMPLES}, or six times as many as weights",
    ),
]


def choose_measured(fitted: int | None, samples: int | None, count: int) -> np.ndarray:
    """Return the indices of the samples that are measured by a solver.

    Args:
        fitted: the option --fitted.
        samples: the option --fit-samples.
        count: number of all samples.

    Returns:
        All indices without --fitted, else so many at equal distances.

    Raises:
        ValueError: if --fit-samples is given without --fitted, is too small for it, or leaves no
            sample to the weights.
    """
    if fitted is None:
        if samples is not None:
            raise ValueError("--fit-samples needs --fitted: add it, or leave --fit-samples out")
        return np.arange(count)
    least = least_samples(fitted)
    samples = max(USUAL_SAMPLES, 3 * least) if samples is None else samples
    if samples < least:
        raise ValueError(
            f"--fitted {fitted} has {least // 2} weights, and --fit-samples {samples} are too few "
            f"to fit them: take at least {least}, better {3 * least}"
        )
    if count <= samples:
        fewer = f", or take fewer --fit-samples ({least} at least)"
        raise ValueError(
            f"--fitted measures {samples} samples by --steps first, and there are {count} in all: "
            f"leave --fitted out{fewer if count > least else ''}"
        )
    return np.linspace(0, count - 1, samples).astype(int)


class _Taken:
    """Some rows of an array, read when they are indexed."""

    def __init__(self, rows: Any, where: np.ndarray):
        self._rows, self._where = rows, where
        self.shape = (len(where), *rows.shape[1:])

    def __getitem__(self, index: np.ndarray) -> Any:
        return self._rows[self._where[index]]


def take(items: Any, where: np.ndarray) -> Any:
    """Return the samples `where` of a pytree of arrays, for `map_batches`."""
    return jax.tree.map(lambda rows: _Taken(rows, where), items)


def fit_rows(
    model: Field,
    items: Any,
    measured: np.ndarray,
    log_densities: np.ndarray,
    *,
    evaluations: int,
    prepare: Callable[..., Any],
    keys: Key,
    divergence: Divergence,
    batch: int,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Fit weights to the measured samples, and measure the others by them.

    Args:
        model: the field, with its condition.
        items: a pytree of all samples, as of `map_batches`.
        measured: indices of the samples that were measured.
        log_densities: of these, in nats.
        evaluations: of the network, for each other sample.
        prepare: `prepare(keys, *item)` returns the sample at t_min of one item.
        keys: (2,) for `prepare`, and for the probes.
        divergence: trace estimator.
        batch: samples in one compiled call.

    Returns:
        The indices of the other samples, and of these the log-densities, the standard errors of
        fit and probes together, and the leverages.
    """
    known = np.isfinite(log_densities)
    if known.sum() < (least := least_samples(evaluations)):
        raise ValueError(
            f"only {known.sum()} of {len(known)} samples have a finite log-density by --steps, and "
            f"--fitted {evaluations} needs {least}: leave --fitted out to see which"
        )
    xs = jax.vmap(partial(prepare, keys))(*(part[measured[known]] for part in items))
    # Within the model's noise levels, also for samples that hardly vary.
    low, high = (float(np.exp(-0.5 * logsnr(model.path, t))) for t in (model.t_min, model.t_max))
    noise = float(np.clip(NOISE * np.std(xs), min(10 * low, 0.5 * high), 0.99 * high))
    grid = grid_logsnr(model, evaluations - 1, noise=noise)
    say(f"fitting weights of {evaluations} evaluations to {len(xs)} samples")
    count = len(items[-1])
    # The numbers up to count are taken: each sample that a solver measures has its own.
    fit_key, key = (jax.random.fold_in(keys[1], count + i) for i in range(2))
    options = {"divergence": divergence}
    on_one = max(1, batch // jax.local_device_count())  # the fit runs on the first device
    values = jnp.asarray(log_densities[known])
    fit = fit_likelihood(model, xs, values, grid, key=fit_key, batch=on_one, **options)
    say(f"they differ from the fit by {float(fit.deviation):.2g} nats (standard deviation)")

    @jax.jit
    def run(model, fit, keys, key, batch):
        def one(*item):
            probes = jax.random.fold_in(key, item[-1])
            return fitted_likelihood(model, fit, prepare(keys, *item), key=probes, **options)

        return jax.vmap(one)(*batch)

    others = np.setdiff1d(np.arange(count), measured)
    found = map_batches("fitted", run, take(items, others), batch, model, fit, keys, key)
    unlike = int(np.sum(~(found.leverage <= UNLIKE)))  # NaN, too
    if unlike:
        say(
            f"{unlike:,} of {len(others):,} samples are unlike those of the fit (leverage above "
            f"{UNLIKE:g}), and their stated errors are rough: measure them without --fitted",
            warning=True,
        )
    return others, found[:3]
