"""Gaussian mixtures: models whose density is known in closed form at every noise level.

A Gaussian mixture plus Gaussian noise is again a Gaussian mixture, so its log-density, score,
Laplacian and denoiser have closed forms. A covariance is stored as a few directions with their
variances, and one variance for all directions perpendicular to them. A mixture without stored
directions and with one component per image is the kernel density of a data set.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.faults import Fault, check, finite, numbers, refuse, require
from dgjax.model.parametrization import Pair
from dgjax.typing import Sample, Scalar, as_float, register_dataclass

__all__ = [
    "GaussianMixture",
    "gaussian",
    "gaussian_mixture",
    "kernel_density",
]


@register_dataclass
@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of Gaussians N(mean_k, U_k diag(variances_k) U_k^T + rest_k (I - U_k U_k^T)).

    Made by `gaussian`, `gaussian_mixture` or `kernel_density`. The methods evaluate the density of
    data plus noise of standard deviation w, at one point y.

    Attributes:
        log_weights: `(K,)` logarithms of the weights, which sum to 1.
        means: `(K, D)`.
        basis: `(K, D, R)` orthonormal directions U_k.
        variances: `(K, R)` variances along these directions.
        rest: `(K,)` variances along all other directions.
        shape: shape of one sample, with D elements.
    """

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    basis: Float[Array, "k d r"]
    variances: Float[Array, "k r"]
    rest: Float[Array, " k"]
    shape: tuple[int, ...] = field(metadata={"static": True})

    @property
    def _others(self) -> int:
        """Number of directions outside the basis."""
        return self.means.shape[1] - self.basis.shape[2]

    def _split(self, y: Sample, w: Scalar):
        """Return y - mean_k along and outside the basis, and the variances of both parts."""
        if y.shape != self.shape:
            raise ValueError(
                f"x has shape {y.shape}, but this mixture has samples of shape {self.shape}"
            )
        offset = y.reshape(1, -1) - self.means
        along = jnp.einsum("kdr,kd->kr", self.basis, offset)
        inside = self.variances + w**2
        if self._others:
            outside = offset - jnp.einsum("kdr,kr->kd", self.basis, along)
            rest = self.rest + w**2
        else:  # outside a full basis there is only rounding, which w^2 must not divide
            outside, rest = jnp.zeros_like(offset), jnp.ones_like(self.rest)
        return along, outside, inside, rest

    def _log_terms(self, along, outside, inside, rest) -> Float[Array, " k"]:
        square = jnp.sum(along**2 / inside, -1) + jnp.sum(outside**2, -1) / rest
        logdet = jnp.sum(jnp.log(inside), -1) + self._others * jnp.log(rest)
        size = self.means.shape[1]
        return self.log_weights - 0.5 * (square + logdet + size * jnp.log(2 * jnp.pi))

    def log_density(self, y: Sample, w: Scalar) -> Scalar:
        """Return the log-density at y of data plus noise, in nats.

        Args:
            y: one sample.
            w: standard deviation of the noise.
        """
        return jax.nn.logsumexp(self._log_terms(*self._split(y, w)))

    def _component_scores(self, along, outside, inside, rest) -> Float[Array, "k d"]:
        return -jnp.einsum("kdr,kr->kd", self.basis, along / inside) - outside / rest[:, None]

    def score(self, y: Sample, w: Scalar) -> Sample:
        """Return the gradient of `log_density` in y.

        Args:
            y: one sample.
            w: standard deviation of the noise.
        """
        parts = self._split(y, w)
        weights = jax.nn.softmax(self._log_terms(*parts))
        return (weights @ self._component_scores(*parts)).reshape(self.shape)

    def laplacian(self, y: Sample, w: Scalar) -> Scalar:
        """Return the Laplacian of `log_density` in y.

        Args:
            y: one sample.
            w: standard deviation of the noise.
        """
        parts = self._split(y, w)
        _, _, inside, rest = parts
        weights = jax.nn.softmax(self._log_terms(*parts))
        scores = self._component_scores(*parts)
        mean = weights @ scores
        # The variance of the component scores; a difference of mean squares would lose digits.
        spread = weights @ jnp.sum((scores - mean[None]) ** 2, -1)
        return spread - weights @ (jnp.sum(1 / inside, -1) + self._others / rest)

    def pair(self, y: Sample, w: Scalar) -> Pair:
        """Return E[x0 | y] and E[eps | y] for y = x0 + w eps.

        Each is computed by its own sum, so that neither loses digits at small or large w.

        Args:
            y: one sample.
            w: standard deviation of the noise.
        """
        along, outside, inside, rest = parts = self._split(y, w)
        weights = jax.nn.softmax(self._log_terms(*parts))
        keep = self.variances / inside * along
        x0 = self.means + jnp.einsum("kdr,kr->kd", self.basis, keep)
        if self._others:
            x0 = x0 + (self.rest / rest)[:, None] * outside
        eps = -w * weights @ self._component_scores(*parts)
        return Pair((weights @ x0).reshape(self.shape), eps.reshape(self.shape))

    def __call__(self, y: Sample, w: Scalar, cond: None = None) -> Sample:
        """Return the denoised sample E[x0 | y], as a network that predicts x0 does."""
        del cond
        return self.pair(y, w).x0

    def sample(self, key: Array, w: ArrayLike = 0.0) -> Sample:
        """Draw one sample of data plus noise.

        Args:
            key: random key.
            w: standard deviation of the noise.

        Returns:
            An array of shape `shape`.
        """
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
    """Make the Gaussian N(mean, covariance).

    Args:
        mean: array of the shape of one sample.
        covariance: `(D, D)`, with D the number of elements of one sample, or a number for a
            multiple of I.

    Returns:
        A mixture of one component.

    Raises:
        ValueError: if shapes disagree or the covariance is not positive semi-definite.
    """
    mean = as_float(mean)
    if jnp.ndim(covariance) == 0:
        wanted = "be finite and not negative"
        variance = require("the variance", as_float(covariance), wanted, _not_negative)
        return kernel_density(mean[None], jnp.sqrt(variance))
    return gaussian_mixture(jnp.ones(1), mean[None], as_float(covariance)[None])


def gaussian_mixture(
    weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, *, rank: int | None = None
) -> GaussianMixture:
    """Make a mixture of Gaussians with full covariances.

    Args:
        weights: `(K,)` positive numbers. They are normalized.
        means: `(K, *shape)`.
        covariances: `(K, D, D)` with D the number of elements of one sample.
        rank: number of leading directions to keep of each covariance; all D by default. The
            variances of the other directions are replaced by their mean.

    Returns:
        The mixture.

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
    weights = _require_positive_weights(weights)
    means = require("means", means, "be finite", finite)
    covariances = require("covariances", covariances, "be finite", finite)
    (matrices,) = numbers(covariances)
    symmetric = abs(matrices - matrices.transpose(0, 2, 1)).max() <= 1e-5 * abs(matrices).max()
    code = check(symmetric, Fault.MODEL_NUMBER, "covariances must be symmetric")
    covariances = refuse(code, covariances)
    values, vectors = jnp.linalg.eigh(covariances)
    values, vectors = values[:, ::-1], vectors[:, :, ::-1]
    (variances,) = numbers(values)
    least, most = variances.min(), variances.max()
    message = "covariances must be positive semi-definite, least {least:.3g}"
    rounding = (least >= -1e-5 * most) | (least >= -1e-35)
    values = refuse(check(rounding, Fault.MODEL_NUMBER, message, least=least), values)
    values = jnp.maximum(values, 0)
    rank = size if rank is None else rank
    if not 0 <= rank <= size:
        raise ValueError(f"rank must be between 0 and the dimension {size}, got {rank}")
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
    """Make a mixture with one isotropic Gaussian at each data point.

    Args:
        data: `(K, *shape)` data points, the means.
        bandwidth: standard deviation of the Gaussians: a number or `(K,)`. 0 is allowed, since
            models add noise.
        weights: `(K,)` positive numbers; equal by default. They are normalized.

    Returns:
        The mixture.

    Raises:
        ValueError: if `data` is empty or not finite, shapes disagree, a weight is not positive or
            the bandwidth is negative.

    Examples:
        >>> import dgjax
        >>> data = jnp.array([[0.0, 0.0], [3.0, 1.0], [4.0, 1.0]])
        >>> mixture = dgjax.kernel_density(data, 0.1)
        >>> model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.01, t_max=80.0)
        >>> print(dgjax.denoise(model, 2.0, jnp.array([3.5, 1.0])).round(2))
        [3.19 0.91]
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
    weights = _require_positive_weights(weights)
    data = require("data", data, "be finite", finite)
    bandwidth = require("bandwidth", bandwidth, "be finite and not negative", _not_negative)
    return GaussianMixture(
        jnp.log(weights / jnp.sum(weights)),
        data.reshape(count, size),
        jnp.zeros((count, size, 0), data.dtype),
        jnp.zeros((count, 0), data.dtype),
        jnp.broadcast_to(bandwidth**2, (count,)),
        shape,
    )


def _not_negative(numbers):
    return (numbers >= 0) & finite(numbers)


def _require_positive_weights(weights: Array) -> Array:
    fix = "leave out components of weight 0"
    return require("weights", weights, "be positive", lambda weights: weights > 0, fix=fix)
