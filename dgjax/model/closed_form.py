"""Fields whose density is known in closed form at every noise level, under every path.

Noise of standard deviation w turns a Gaussian mixture into a Gaussian mixture, so its
log-density, score, Laplacian and denoiser are all elementary. Covariances are stored as a few
directions with their variances and one variance for all the others; no directions and one
component per image is the kernel density of a data set.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.field import Field
from dgjax.model.field import field as make_field
from dgjax.model.parametrization import Pair
from dgjax.model.paths import Path, edm, logsnr
from dgjax.typing import Sample, Scalar, as_float, concrete, register_dataclass

__all__ = [
    "GaussianMixture",
    "closed_form",
    "gaussian",
    "gaussian_mixture",
    "kernel_density",
    "log_density",
]


@register_dataclass
@dataclass(frozen=True)
class GaussianMixture:
    """Sum_k weight_k N(mean_k, U_k diag(variances_k) U_k^T + rest_k (I - U_k U_k^T)).

    Made by `gaussian`, `gaussian_mixture` or `kernel_density`. Methods take one sample y of the
    mixture's shape with noise of standard deviation w added to the data.
    """

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    basis: Float[Array, "k d r"]
    variances: Float[Array, "k r"]
    rest: Float[Array, " k"]
    shape: tuple[int, ...] = field(metadata={"static": True})

    @property
    def _others(self) -> int:
        return self.means.shape[1] - self.basis.shape[2]

    def _split(self, y: Sample, w: Scalar):
        """Offsets from each mean, along the basis and outside it, and the noisy variances."""
        if y.shape != self.shape:
            raise ValueError(f"x has shape {y.shape} and this mixture lives in {self.shape}")
        offset = y.reshape(1, -1) - self.means
        along = jnp.einsum("kdr,kd->kr", self.basis, offset)
        inside = self.variances + w**2
        if self._others:
            outside = offset - jnp.einsum("kdr,kr->kd", self.basis, along)
            rest = self.rest + w**2
        else:  # nothing is outside a full basis, and rounding must not be divided by w^2
            outside, rest = jnp.zeros_like(offset), jnp.ones_like(self.rest)
        return along, outside, inside, rest

    def _log_terms(self, along, outside, inside, rest) -> Float[Array, " k"]:
        square = jnp.sum(along**2 / inside, -1) + jnp.sum(outside**2, -1) / rest
        logdet = jnp.sum(jnp.log(inside), -1) + self._others * jnp.log(rest)
        size = self.means.shape[1]
        return self.log_weights - 0.5 * (square + logdet + size * jnp.log(2 * jnp.pi))

    def log_density(self, y: Sample, w: Scalar) -> Scalar:
        """log-density of data plus noise, in nats."""
        return jax.nn.logsumexp(self._log_terms(*self._split(y, w)))

    def _component_scores(self, along, outside, inside, rest) -> Float[Array, "k d"]:
        return -jnp.einsum("kdr,kr->kd", self.basis, along / inside) - outside / rest[:, None]

    def score(self, y: Sample, w: Scalar) -> Sample:
        """Gradient of `log_density` in y."""
        parts = self._split(y, w)
        weights = jax.nn.softmax(self._log_terms(*parts))
        return (weights @ self._component_scores(*parts)).reshape(self.shape)

    def laplacian(self, y: Sample, w: Scalar) -> Scalar:
        """Laplacian of `log_density` in y."""
        parts = self._split(y, w)
        _, _, inside, rest = parts
        weights = jax.nn.softmax(self._log_terms(*parts))
        scores = self._component_scores(*parts)
        mean = weights @ scores
        # The spread of the component scores, centred: the difference of squares would cancel.
        spread = weights @ jnp.sum((scores - mean[None]) ** 2, -1)
        return spread - weights @ (jnp.sum(1 / inside, -1) + self._others / rest)

    def pair(self, y: Sample, w: Scalar) -> Pair:
        """E[x0 | y] and E[eps | y], each as a sum in which nothing cancels at small or large w."""
        along, outside, inside, rest = parts = self._split(y, w)
        weights = jax.nn.softmax(self._log_terms(*parts))
        keep = self.variances / inside * along
        x0 = self.means + jnp.einsum("kdr,kr->kd", self.basis, keep)
        if self._others:
            x0 = x0 + (self.rest / rest)[:, None] * outside
        eps = -w * weights @ self._component_scores(*parts)
        return Pair((weights @ x0).reshape(self.shape), eps.reshape(self.shape))

    def __call__(self, y: Sample, w: Scalar, cond: None = None) -> Sample:
        """The denoiser E[x0 | y]."""
        del cond
        return self.pair(y, w).x0

    def sample(self, key: Array, w: ArrayLike = 0.0) -> Sample:
        """One draw of data plus noise of standard deviation w."""
        pick, noise = jax.random.split(key)
        k = jax.random.categorical(pick, self.log_weights)
        size, rank = self.basis.shape[1:]
        z = jax.random.normal(noise, (rank + size,), self.means.dtype)
        x = self.means[k] + self.basis[k] @ (jnp.sqrt(self.variances[k] + w**2) * z[:rank])
        if self._others:
            out = z[rank:] - self.basis[k] @ (self.basis[k].T @ z[rank:])
            x = x + jnp.sqrt(self.rest[k] + w**2) * out
        return x.reshape(self.shape)


def gaussian(mean: ArrayLike, covariance: ArrayLike) -> GaussianMixture:
    """N(mean, covariance); `covariance` is (D, D), or a scalar for a multiple of I.

    Raises:
        ValueError: if shapes disagree or the covariance is not positive semi-definite.
    """
    mean = as_float(mean)
    if jnp.ndim(covariance) == 0:
        variance = as_float(covariance)
        _check_positive("the variance", variance)
        return kernel_density(mean[None], jnp.sqrt(variance))
    return gaussian_mixture(jnp.ones(1), mean[None], as_float(covariance)[None])


def gaussian_mixture(
    weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, *, rank: int | None = None
) -> GaussianMixture:
    """A mixture with full covariances, kept to their `rank` leading directions if told.

    Args:
        weights: (K,), positive; they are normalised.
        means: (K, *shape).
        covariances: (K, D, D) with D the number of elements of one sample.
        rank: keep so many directions; the variances of the others are replaced by their mean.

    Raises:
        ValueError: if shapes disagree, a weight is not positive, or a covariance is not
            symmetric positive semi-definite, or a number is not finite.
    """
    weights, means, covariances = as_float(weights), as_float(means), as_float(covariances)
    count, shape = len(means) if means.ndim else 0, means.shape[1:]
    size = int(np.prod(shape))
    if not count or weights.shape != (count,) or covariances.shape != (count, size, size):
        raise ValueError(
            f"weights {weights.shape}, means {means.shape} and covariances {covariances.shape} "
            f"must be (K,), (K, *shape) and (K, D, D)"
        )
    _check_weights(weights)
    _check_finite("means", means)
    _check_finite("covariances", covariances)
    matrices = concrete(covariances)
    if matrices is not None:
        skew = np.abs(matrices - matrices.transpose(0, 2, 1))
        if skew.max() > 1e-5 * np.abs(matrices).max():
            raise ValueError("covariances must be symmetric")
    values, vectors = jnp.linalg.eigh(covariances)
    values, vectors = values[:, ::-1], vectors[:, :, ::-1]
    numbers = concrete(values)
    if numbers is not None and numbers.min() < -1e-5 * max(numbers.max(), 1e-30):
        raise ValueError(f"covariances must be positive semi-definite, least {numbers.min():.3g}")
    values = jnp.maximum(values, 0)
    rank = size if rank is None else rank
    if not 0 <= rank <= size:
        raise ValueError(f"rank must be between 0 and {size}, got {rank}")
    rest = jnp.mean(values[:, rank:], -1) if rank < size else jnp.zeros(count)
    return GaussianMixture(
        jnp.log(weights / jnp.sum(weights)),
        means.reshape(count, size),
        vectors[:, :, :rank],
        values[:, :rank],
        rest,
        shape,
    )


def kernel_density(
    data: ArrayLike, bandwidth: ArrayLike, weights: ArrayLike | None = None
) -> GaussianMixture:
    """One isotropic Gaussian of standard deviation `bandwidth` at each row of `data` (K, *shape).

    Raises:
        ValueError: if `data` is empty or not finite, shapes disagree, a weight is not positive or
            the bandwidth is negative.
    """
    data = as_float(data)
    if data.ndim < 1 or data.size == 0:
        raise ValueError(f"data must be (K, *shape) with K > 0, got shape {data.shape}")
    count, shape = data.shape[0], data.shape[1:]
    size = int(np.prod(shape))
    weights = jnp.ones(count) if weights is None else as_float(weights)
    bandwidth = as_float(bandwidth)
    if weights.shape != (count,) or bandwidth.shape not in ((), (count,)):
        raise ValueError(
            f"{count} samples take weights ({count},) and a bandwidth () or ({count},), "
            f"got {weights.shape} and {bandwidth.shape}"
        )
    _check_weights(weights)
    _check_finite("data", data)
    _check_positive("bandwidth", bandwidth)
    return GaussianMixture(
        jnp.log(weights / jnp.sum(weights)),
        data.reshape(count, size),
        jnp.zeros((count, size, 0), data.dtype),
        jnp.zeros((count, 0), data.dtype),
        jnp.broadcast_to(bandwidth**2, (count,)),
        shape,
    )


def _check_finite(name: str, value: Array) -> None:
    numbers = concrete(value)
    if numbers is not None and not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be finite; some are NaN or infinite")


def _check_positive(name: str, value: Array) -> None:
    numbers = concrete(value)
    if numbers is not None and not ((numbers >= 0) & np.isfinite(numbers)).all():
        raise ValueError(f"{name} must be finite and not negative")


def _check_weights(weights: Array) -> None:
    numbers = concrete(weights)
    if numbers is not None and not (numbers > 0).all():
        raise ValueError("weights must be positive; drop components of weight zero")


@register_dataclass
@dataclass(frozen=True)
class _MixturePair:
    """Both of a mixture's expectations; eps as (y - x0)/w would cancel at small w."""

    def __call__(self, network, x, t, c, cond):
        del t, cond
        return network.pair(x, c.sigma)  # always in the coordinates where alpha is 1


def closed_form(
    mixture: GaussianMixture, path: Path, *, t_min: ArrayLike, t_max: ArrayLike
) -> Field:
    """The exact field of `mixture` on `path`, with the exact density at t_max as its prior.

    Raises:
        ValueError: if alpha or sigma vanishes at t_min or t_max.
    """
    model = make_field(mixture, path, _MixturePair(), t_min=t_min, t_max=t_max, prior=mixture)
    # The mixture is called in the coordinates y = x/alpha, w = sigma/alpha, whatever the path.
    return replace(model, native=edm())


def log_density(model: Field, t: ArrayLike, x: Sample) -> Scalar:
    """Exact log p_t(x) of a `closed_form` field, in nats.

    Raises:
        ValueError: if the field's network is not a mixture.
    """
    if not isinstance(model.network, GaussianMixture):
        raise ValueError("only a field made by closed_form has an exact log-density")
    t = as_float(t)
    alpha = model.path.alpha(t)
    w = jnp.exp(-0.5 * logsnr(model.path, t))
    return model.network.log_density(x / alpha, w) - x.size * jnp.log(alpha)
