r"""Log-density in a few evaluations, by weights that are fitted to one model and its data.

The log-density of the probability-flow ODE is an integral over noise levels. Four evaluations are
too few for general weights, but images that one model is used for are much alike: between them the
integral is close to a linear function of numbers that are known where the model is evaluated,

    sigma^2 Lap log p_t,  |sigma s|^2,  |x0|^2/w^2  at every point,  |y|^2/w^2  at the last,

s the score, x0 the denoised sample, y = x/alpha and w = sigma/alpha. If the curve follows the ODE,
every quadrature of identity (A) or (C) through these points is such a function, and |x0|^2/w^2 and
|y|^2/w^2, the latter at the noisiest point, know something of the rest. Least squares over samples
whose log-density was measured well finds the best function. It makes up for coarse steps, and for
what the curve lacks beyond its noisiest point. For an isotropic Gaussian it is exact.

**Error.** The deviation of the residuals, probes included, is that of samples like those fitted. A
sample unlike them has a larger leverage, its squared distance from their mean in the metric of
their covariance. The stated error grows with this distance. Numbers that hardly vary between the
samples of the fit have no weight. Where one of them differs, it counts for the leverage, and its
difference times a step of log w for the error.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, Hutchinson, check_count
from dgjax.model.estimator_identity import identify_estimator
from dgjax.model.faults import Code, Fault, as_code, check, finite, first, numbers, refuse
from dgjax.model.field import Field
from dgjax.model.paths import logsnr
from dgjax.sampling.checks import check_entries, check_grid, check_sample, check_shape
from dgjax.sampling.compiled import compile_once
from dgjax.sampling.density_numbers import density_numbers
from dgjax.sampling.traced_numbers import check_model
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, concrete, safe_sqrt

__all__ = [
    "FittedLikelihood",
    "LikelihoodFit",
    "fit_likelihood",
    "fitted_likelihood",
    "least_samples",
]

# Numbers whose deviation is below this share of that of the log-densities are left out: their
# weights would be large, and a sample for which they differ would be far off.
LEAST_SPREAD = 0.01
USUAL = 4.0  # deviations by which numbers that are left out may differ from their mean
LEAST_SINGULAR = 1e-3  # share of the largest singular value, below which directions are left out


class LikelihoodFit(NamedTuple):
    """Weights of `fitted_likelihood`, fitted by `fit_likelihood` to one model.

    Attributes:
        grid: (n,) decreasing times at which the model is evaluated.
        logsnrs: (n,) log-SNR of the model at these times.
        mean_sample: mean of the samples, of the shape of one.
        centre: (k,) mean of the k = 3 n + 1 numbers that the log-density is a function of.
        whitening: (k, k) maps their difference from the mean to uncorrelated numbers, whose squares
            add up to 1 over the samples.
        weights: (k,) of these, in nats; 0 for directions that hardly vary.
        left_out: (k,) 1 for numbers that hardly vary and so are left out, 0 for others.
        floor: (k,) what a number must vary by so as not to be left out.
        mean: mean log-density of the samples, in nats.
        deviation: standard deviation of the residuals, in nats.
        samples: their number.
        rank: number of fitted parameters, the mean among them.
        estimator: a number for the kind and the sizes of the trace estimator.
        fault: 0, or the code of the first check that failed while JAX was tracing. What is measured
            by the weights is then NaN.
    """

    grid: Float[Array, " n"]
    logsnrs: Float[Array, " n"]
    mean_sample: Sample
    centre: Float[Array, " k"]
    whitening: Float[Array, "k k"]
    weights: Float[Array, " k"]
    left_out: Float[Array, " k"]
    floor: Float[Array, " k"]
    mean: Scalar
    deviation: Scalar
    samples: Scalar
    rank: Scalar
    estimator: Int[Array, ""]
    fault: Int[Array, ""]


class FittedLikelihood(NamedTuple):
    """Log-density of a sample by fitted weights.

    Attributes:
        log_density: log p(x) at the last time of the grid, in nats.
        standard_error: its error from the fit and from probes together, in nats. Where x is more
            unlike the samples of the fit than they are on average, it grows with its distance.
        leverage: about 1 for samples like those of the fit, and larger for others. Where it is
            above 10, measure some of these by `likelihood` too, or fit to such samples.
        fault: 0, or the code of the first check that failed while JAX was tracing. The numbers are
            then NaN.
    """

    log_density: Scalar
    standard_error: Scalar
    leverage: Scalar
    fault: Int[Array, ""]


def least_samples(evaluations: int) -> int:
    """Return the smallest number of samples that `fit_likelihood` takes: two for each weight.

    Args:
        evaluations: of the network, as many as the grid has times.
    """
    return 2 * (3 * evaluations + 2)


def fit_likelihood(
    model: Field,
    xs: Float[Array, "N ..."],
    log_densities: Float[Array, " N"],
    grid: Float[Array, " n"],
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: PyTree = None,
    batch: int = 16,
) -> LikelihoodFit:
    """Fit weights that give log-densities in as many evaluations as the grid has times.

    The method is at the top of `dgjax.sampling.fitted_likelihood`. The fit holds for this model,
    for samples like `xs`, and for the divergence that it was made with. For derivatives it is
    constant.

    Args:
        model: the field.
        xs: (N, *shape) samples at the last time of the grid, such as training data.
        log_densities: (N,) of `xs`, in nats, by `likelihood` with many steps. Half a dozen times
            as many as weights, of which there are 3 n + 2, are enough.
        grid: (n,) decreasing times, at least 2, such as `grid_logsnr(model, n - 1, noise=...)`. It
            need not start at t_max: a noise of two to four times the standard deviation of the data
            is best.
        key: for the probes.
        divergence: trace estimator.
        cond: conditions of the model, one for each sample: all leaves are (N, ...).
        batch: samples that are evaluated together, which bounds memory.

    Returns:
        `LikelihoodFit`, for `fitted_likelihood`.

    Raises:
        ValueError: if shapes disagree, there are fewer than two samples for each weight, a number
            is not finite, the grid does not decrease within the model's range, `batch` is not a
            positive int, or the model or the divergence (`Untracked`) gives NaN for a sample.

    Examples:
        >>> import jax
        >>> import dgjax
        >>> data = dgjax.gaussian([1.0, -2.0], 0.5)
        >>> model = dgjax.closed_form(data, dgjax.edm(), t_min=0.01, t_max=80.0)
        >>> x = jnp.array([1.5, 1.0])
        >>> xs = jnp.array([1.0, -2.0]) + jax.random.normal(jax.random.key(0), (32, 2))
        >>> known = jax.vmap(lambda x: dgjax.log_density(model, 0.01, x))(xs)
        >>> grid = dgjax.grid_logsnr(model, 1, noise=2.0)
        >>> options = {"key": jax.random.key(1), "divergence": dgjax.Exact()}
        >>> fit = fit_likelihood(model, xs, known, grid, **options)
        >>> found = fitted_likelihood(model, fit, x, **options)
        >>> print(abs(found.log_density - dgjax.log_density(model, 0.01, x)) < 1e-3)
        True
    """
    xs, log_densities, grid = jnp.asarray(xs), as_float(log_densities), as_float(grid)
    check_count("batch", batch)
    if xs.ndim < 1 or log_densities.shape != xs.shape[:1]:
        raise ValueError(
            f"xs {xs.shape} and log_densities {log_densities.shape} must be (N, *shape) and (N,)"
        )
    check_shape(model, xs.shape[1:], "each of xs")
    fault = first(
        check_model(model),
        check_grid(model, grid),
        check_entries(xs, "xs"),
        check_entries(log_densities, "log_densities"),
    )
    least = least_samples(len(grid))
    if len(xs) < least:
        raise ValueError(
            f"{len(grid)} evaluations have {least // 2} weights, and {len(xs)} samples are too few "
            f"to fit them: give at least {least}, and better three times as many"
        )
    for leaf in jax.tree.leaves(cond):
        if jnp.shape(leaf)[:1] != xs.shape[:1]:
            raise ValueError(
                f"cond has a leaf of shape {jnp.shape(leaf)}, but there are {len(xs)} samples: "
                "stack one condition for each of them"
            )
    fit = _fit(model, xs, log_densities, grid, key, divergence, cond, batch, fault)
    message = (
        "the divergence or the score is NaN or infinite for some of xs, so that nothing can be "
        "fitted: leave these samples out (Untracked() has no divergence; pass another estimator)"
    )
    (deviation,) = numbers(fit.deviation)
    fault = first(fault, check(finite(deviation), Fault.NOT_FINITE, message))
    return fit._replace(mean=refuse(fault, fit.mean), fault=as_code(fault))


def fitted_likelihood(
    model: Field,
    fit: LikelihoodFit,
    x: Sample,
    *,
    key: Key,
    divergence: Divergence = Hutchinson(),
    cond: Cond = None,
) -> FittedLikelihood:
    """Measure the log-density of one sample in the few evaluations that weights were fitted for.

    Args:
        model: the field that the weights were fitted to.
        fit: from `fit_likelihood`.
        x: one sample at the last time of `fit.grid`.
        key: for the probes.
        divergence: trace estimator, the same as in the fit, whose errors have its noise in them.
        cond: condition of the model; the log-density is then log p(x | cond).

    Returns:
        `FittedLikelihood(log_density, standard_error, leverage, fault)`, in nats.

    Raises:
        ValueError: if x is not of the shape of the samples of the fit, not floating or not finite,
            the model has other noise levels at the times of the fit, the divergence is of another
            kind or size than in the fit, or the fit has a fault.
    """
    if not isinstance(fit, LikelihoodFit):
        raise ValueError(
            f"fit must be what fit_likelihood returns, got {type(fit).__name__}: the arguments are "
            "fitted_likelihood(model, fit, x)"
        )
    x = jnp.asarray(x)
    shape = jnp.shape(fit.mean_sample)
    if x.shape != shape:
        raise ValueError(
            f"x has shape {x.shape}, but the weights were fitted to samples of shape {shape}: pass "
            "one such sample (jax.vmap maps over a batch), or fit weights to yours"
        )
    fault = first(check_model(model), check_sample(model, x), _check_fit(model, fit, divergence))
    return _fitted(condition(model, cond), fit, x, key, divergence, fault)


def _check_fit(model: Field, fit: LikelihoodFit, divergence: Divergence) -> Code:
    """Check that weights can be used for a model, as far as this can be seen."""
    made = concrete(fit.fault)
    if made is not None and made != 0:
        raise ValueError(f"the weights are of a fit that failed: {Fault(int(made)).meaning}")  # type: ignore[call-arg]
    code = Fault.NONE if made is not None else jnp.asarray(fit.fault, jnp.int32)
    levels, fitted = numbers(logsnr(model.path, as_float(fit.grid)), fit.logsnrs)
    message = (
        "the weights were fitted to a model with other noise levels at the times of their grid: "
        "fit weights to this model"
    )
    same = (abs(levels - fitted) <= 1e-3 * (1 + abs(fitted))).all()
    code = first(code, check(same, Fault.OTHER_MODEL, message))
    message = (
        "the weights were fitted with another divergence, and their stated errors are for its "
        "noise: pass the same one, of the same size, to fit_likelihood and fitted_likelihood"
    )
    (estimator,) = numbers(fit.estimator)
    same = estimator == identify_estimator(divergence)
    return first(code, check(same, Fault.OTHER_DIVERGENCE, message))


@compile_once
def _fit(
    model: Field, xs, log_densities, grid, key, divergence: Divergence, cond, batch, fault: Code
) -> LikelihoodFit:
    """Fit with arguments that were checked."""

    def known(a):
        x, key, cond = a
        return density_numbers(condition(model, cond), grid, x, key, divergence)

    count = len(xs)
    keys = jax.random.split(key, count)
    found = jax.lax.map(known, (xs, keys, cond), batch_size=min(batch, count))
    found, log_densities, xs = jax.lax.stop_gradient((found, log_densities, xs))
    centre, mean = jnp.mean(found, 0), jnp.mean(log_densities)
    spread, eps = jnp.std(found, 0), jnp.finfo(found.dtype).eps
    rounding = 10 * eps * jnp.max(jnp.abs(found), 0) + jnp.finfo(found.dtype).tiny
    floor = LEAST_SPREAD * jnp.std(log_densities) + rounding
    left_out = spread <= floor
    scale = jnp.where(left_out, 0, 1 / jnp.where(left_out, 1, spread))
    left, singular, right = jnp.linalg.svd(
        (found - centre[None]) * scale[None], full_matrices=False
    )
    least = LEAST_SINGULAR * singular[0]
    kept = singular > least
    lengths = jnp.maximum(singular, least)
    whitening = (right * scale[None]).T / jnp.where(lengths > 0, lengths, 1)[None]
    weights = jnp.where(kept, _product(left.T, log_densities - mean), 0)
    residuals = log_densities - mean - _product(left, weights)
    rank = as_float(jnp.sum(kept) + 1)  # with the mean
    deviation = jnp.sqrt(jnp.sum(residuals**2) / (count - rank))
    return LikelihoodFit(
        grid=grid,
        logsnrs=logsnr(model.path, grid),
        mean_sample=jnp.mean(xs, 0),
        centre=centre,
        whitening=whitening,
        weights=weights,
        left_out=left_out.astype(found.dtype),
        floor=floor,
        mean=mean,
        deviation=deviation,
        samples=as_float(count),
        rank=rank,
        estimator=jnp.asarray(identify_estimator(divergence), jnp.int32),
        fault=as_code(fault),
    )


@compile_once
def _fitted(
    model: Field, fit: LikelihoodFit, x, key, divergence: Divergence, fault: Code
) -> FittedLikelihood:
    """Evaluate with arguments that were checked."""
    moved = density_numbers(model, fit.grid, x, key, divergence) - fit.centre
    white = _product(moved, fit.whitening)
    beyond = fit.left_out * jnp.maximum(jnp.abs(moved) - USUAL * fit.floor, 0)
    share = jnp.sum(white**2) + 1 / fit.samples
    leverage = (share * fit.samples + jnp.sum((beyond / fit.floor) ** 2)) / fit.rank
    step = 0.5 * jnp.mean(jnp.diff(fit.logsnrs))  # of log w
    unknown = step**2 * jnp.sum(beyond**2)
    error = safe_sqrt(fit.deviation**2 * (1 + share) * jnp.maximum(leverage, 1) + unknown)
    log_density = fit.mean + _product(white, fit.weights)
    log_density, error, leverage = (refuse(fault, a) for a in (log_density, error, leverage))
    return FittedLikelihood(log_density, error, leverage, as_code(fault))


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
