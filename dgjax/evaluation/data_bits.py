"""Bits per dimension of data, whose levels are dequantized in three ways."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dgjax.checkpoints.opened import Model
from dgjax.evaluation.batched import SolverSettings, measure_log_densities
from dgjax.evaluation.intervals import mean_interval
from dgjax.evaluation.metrics import Metric
from dgjax.evaluation.reference_data import ReferenceData
from dgjax.pictures.code_length import bits_per_dim_bound, dequantize_truncated
from dgjax.pictures.quantization import bits_per_dim, dequantize

__all__ = ["measure_bits_per_dim"]


def measure_bits_per_dim(
    model: Model,
    reference: ReferenceData,
    num: int,
    draws: int,
    settings: SolverSettings,
    confidence: float,
) -> dict[str, Metric]:
    """Measure bits per dimension of data; uint8 data are dequantized in three ways.

    Args:
        model: the model.
        reference: the data, of which the first `num` samples are used.
        num: number of samples.
        draws: of the noise, for the importance-weighted bound; with 1 there is none.
        settings: of the solver.
        confidence: of the interval, in (0, 1).

    Returns:
        Metrics by name: "bits_per_dim", with uniform noise; for uint8 data
        "bits_per_dim_truncated", with Gaussian noise that is cut off at a level, and
        "bits_per_dim_weighted", from several draws of it.
    """
    keys = jax.random.split(jax.random.key(settings.seed), 2)
    dataset, labels = reference.dataset, reference.conditions(num)
    solve_keys, size = jax.random.split(keys[1], num), model.size

    def metric(values, errors, solver_errors):
        unit = size * np.log(2)
        noise, bias = np.sqrt((errors**2).sum()) / (num * unit), np.mean(solver_errors) / unit
        return Metric(
            mean_interval(values, confidence=confidence),
            num,
            probe_error=float(noise),
            solver_error=float(bias) if np.isfinite(bias) else None,
        )

    if not (isinstance(dataset.values, np.ndarray) and dataset.values.dtype == np.uint8):
        x = jnp.asarray(reference.samples(0, num))
        found, *errors = measure_log_densities(model, x, solve_keys, labels, settings)
        values = bits_per_dim(found, size, model.meta.data_range)
        return {"bits_per_dim": metric(values, *errors)}

    # Values of all 256 levels, of which the data may use fewer.
    span = (dataset.offset, dataset.offset + 255 * dataset.scale)
    levels = dataset.values[reference.order[:num]]
    path, t_min = model.field.path, model.field.t_min
    sigma = path.sigma(t_min) / path.alpha(t_min)
    noise_keys = jax.random.split(jax.random.fold_in(keys[0], 1), (draws, num))
    add_noise = partial(dequantize_truncated, data_range=span, sigma=sigma)
    noisy = jax.vmap(jax.vmap(add_noise), (0, None))(noise_keys, levels)
    uniform = dequantize(keys[0], levels, span)

    # The draws of an image share the probes, so that their log-densities have the same error.
    x = jnp.concatenate([uniform, noisy.x.reshape(-1, *uniform.shape[1:])])
    repeat = lambda a: np.tile(a, 1 + draws)
    measured = measure_log_densities(
        model,
        x,
        solve_keys[repeat(np.arange(num))],
        None if labels is None else repeat(labels),
        settings,
    )
    found, *errors = (a.reshape(1 + draws, num) for a in measured)
    of_uniform, of_normal = ([a[i] for a in errors] for i in (0, 1))
    log_weights = found[1:] - np.asarray(noisy.noise_density)
    metrics = {
        "bits_per_dim": metric(bits_per_dim(found[0], size, span), *of_uniform),
        "bits_per_dim_truncated": metric(bits_per_dim_bound(log_weights[:1].T, size), *of_normal),
    }
    if draws > 1:
        bound = bits_per_dim_bound(log_weights.T, size)
        metrics["bits_per_dim_weighted"] = metric(bound, *of_normal)
    return metrics
