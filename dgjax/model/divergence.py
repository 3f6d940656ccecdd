"""Estimators for the trace of a linear map that is known only by its products with vectors.

An estimator is a frozen dataclass of static numbers. It maps a linear map to `(n,)` independent
unbiased estimates of the trace. Their mean is the value. Solvers integrate each of the n estimates
by itself; the spread of the n integrals gives the standard error of the integral, whatever the
correlation in time. The linear map comes from one `jax.linearize`, so the value and all products
share one pass of the network.

On a fixed grid, solvers give every step a new key, so probe noise averages out along the
trajectory. `FixedProbe` uses one key for the whole solve, as adaptive steps need.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgjax.typing import Key, LinearMap, Sample, Scalar, register_dataclass, safe_sqrt

__all__ = [
    "Divergence",
    "Exact",
    "FixedProbe",
    "HutchPP",
    "Hutchinson",
    "Untracked",
    "check_count",
    "gaussian",
    "rademacher",
    "sampled_error",
    "sphere",
]


class Divergence(Protocol):
    """An estimator for the trace of a linear map on arrays of the shape of x."""

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " n"]:
        """Return independent unbiased estimates of the trace.

        Args:
            jvp: the linear map, from an array of the shape of x to one of the same shape.
            x: gives the shape and the dtype.
            key: random key of the probes.

        Returns:
            `(n,)` estimates.
        """
        ...

    def standard_error(self, estimates: Float[Array, " n"], scatter: ArrayLike = jnp.inf) -> Scalar:
        """Return the standard error of the mean of `estimates`.

        A linear functional of the estimates, such as their integral over a trajectory, may take
        their place.

        Args:
            estimates: `(n,)` independent estimates.
            scatter: the standard error that a solver derives from the scatter of the estimates
                about a smooth curve in time. It is valid only for probes that are independent in
                time; others ignore it.
        """
        ...


def rademacher(key: Key, x: Sample) -> Sample:
    """Draw random signs of the shape of x.

    Among probes with independent entries they give the least variance.
    """
    return jax.random.rademacher(key, x.shape, x.dtype)


def gaussian(key: Key, x: Sample) -> Sample:
    """Draw standard normal numbers of the shape of x."""
    return jax.random.normal(key, x.shape, x.dtype)


def sphere(key: Key, x: Sample) -> Sample:
    """Draw a point of the sphere of radius sqrt(D), uniformly, of the shape of x."""
    z = jax.random.normal(key, x.shape, x.dtype)
    return z * jnp.sqrt(x.size / jnp.sum(z**2))


def sampled_error(estimates: Array, scatter: ArrayLike) -> Scalar:
    """Return the standard error of the mean of independent estimates, or `scatter` if n = 1."""
    n = estimates.shape[0]
    if n < 2:  # a single estimate has no spread
        return jnp.asarray(scatter, estimates.dtype)
    deviation = safe_sqrt(jnp.var(estimates, ddof=1))
    return deviation / jnp.sqrt(jnp.asarray(n, estimates.dtype))


def check_count(name: str, count: int) -> None:
    """Check that `count` is a positive int.

    Args:
        name: what `count` is called in the error message.
        count: the number.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{name} must be a positive int, got {count!r}")


@register_dataclass
@dataclass(frozen=True)
class Exact:
    """Compute the exact trace from all D products.

    Attributes:
        chunk: number of products computed at once; it bounds the memory.

    Raises:
        ValueError: if `chunk` is not a positive int.
    """

    chunk: int = field(default=64, metadata={"static": True})

    def __post_init__(self):
        check_count("chunk", self.chunk)

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " 1"]:
        """Return independent unbiased estimates of the trace."""
        del key

        def diagonal(i):
            unit = jnp.zeros(x.size, x.dtype).at[i].set(1).reshape(x.shape)
            return jvp(unit).reshape(-1)[i]

        entries = jax.lax.map(diagonal, jnp.arange(x.size), batch_size=min(self.chunk, x.size))
        return jnp.sum(entries)[None]

    def standard_error(self, estimates: Float[Array, " 1"], scatter: ArrayLike = jnp.inf) -> Scalar:
        """Return the standard error of the mean of `estimates`."""
        del scatter
        return jnp.zeros((), estimates.dtype)


@register_dataclass
@dataclass(frozen=True)
class Untracked:
    """Estimate nothing: log-densities are NaN and samples cost less.

    Use it for samples without log-densities. XLA removes a divergence that nothing reads, but not
    with solvers that carry values over to the next step: Multistep, Bosh3, Tsit5 and Dopri5.
    """

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " 1"]:
        """Return independent unbiased estimates of the trace."""
        del jvp, key
        return jnp.full(1, jnp.nan, x.dtype)

    def standard_error(self, estimates: Float[Array, " 1"], scatter: ArrayLike = jnp.inf) -> Scalar:
        """Return the standard error of the mean of `estimates`."""
        del scatter
        return jnp.full((), jnp.inf, estimates.dtype)


@register_dataclass
@dataclass(frozen=True)
class Hutchinson:
    """Estimate the trace by z^T A z for random probes z of covariance I (Hutchinson 1989).

    The variance per probe is 2 (|A|_F^2 - |diag A|^2) for random signs and 2 |A|_F^2 for Gaussian
    probes, with A the symmetric part of the map. Each probe takes one product.

    Attributes:
        probes: number n of estimates.
        sample: draws a probe, `(key, x) -> z`: `rademacher`, `gaussian`, `sphere` or your own.

    Raises:
        ValueError: if `probes` is not a positive int.
    """

    probes: int = field(default=1, metadata={"static": True})
    sample: Callable[[Key, Sample], Sample] = field(default=rademacher, metadata={"static": True})

    def __post_init__(self):
        check_count("probes", self.probes)

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " n"]:
        """Return independent unbiased estimates of the trace."""

        def estimate(key):
            z = self.sample(key, x)
            return jnp.sum(z * jvp(z))

        if self.probes == 1:
            return estimate(jax.random.fold_in(key, 0))[None]
        return jax.vmap(estimate)(jax.random.split(key, self.probes))

    def standard_error(self, estimates: Float[Array, " n"], scatter: ArrayLike = jnp.inf) -> Scalar:
        """Return the standard error of the mean of `estimates`."""
        return sampled_error(estimates, scatter)


@register_dataclass
@dataclass(frozen=True)
class HutchPP:
    """Estimate the trace by Hutch++ (Meyer et al. 2021, arXiv 2010.09649).

    The trace on a random subspace is exact, and Hutchinson's estimator serves the rest. It takes
    2 `rank` + `probes` products. All estimates share the subspace; given the subspace they are
    independent and unbiased.

    Attributes:
        rank: dimension of the subspace, at most D.
        probes: number n of estimates.

    Raises:
        ValueError: if either is not a positive int, or, when called, if `rank` exceeds D.
    """

    rank: int = field(default=4, metadata={"static": True})
    probes: int = field(default=4, metadata={"static": True})

    def __post_init__(self):
        check_count("rank", self.rank)
        check_count("probes", self.probes)

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " n"]:
        """Return independent unbiased estimates of the trace."""
        if self.rank > x.size:
            raise ValueError(f"rank {self.rank} exceeds the dimension {x.size}; take a lower rank")
        sketch_key, probe_key = jax.random.split(key)

        def product(z):
            return jvp(z.reshape(x.shape)).reshape(-1)

        # Gaussian, because random signs often coincide in few dimensions.
        sketch = jax.random.normal(sketch_key, (self.rank, x.size), x.dtype)
        basis = jnp.linalg.qr(jax.vmap(product)(sketch).T)[0].T
        captured = jnp.sum(basis * jax.vmap(product)(basis))
        z = jax.random.rademacher(probe_key, (self.probes, x.size), x.dtype)
        z = z - (z @ basis.T) @ basis
        return captured + jnp.sum(z * jax.vmap(product)(z), axis=-1)

    def standard_error(self, estimates: Float[Array, " n"], scatter: ArrayLike = jnp.inf) -> Scalar:
        """Return the standard error of the mean of `estimates`."""
        return sampled_error(estimates, scatter)


@register_dataclass
@dataclass(frozen=True)
class FixedProbe:
    """Use `estimator` with one key for the whole solve in place of a new key per step.

    The integrand is then a smooth function of time, as adaptive step control needs. But the probe
    errors do not average out along the trajectory. Under `vmap` give each sample its own key.

    Attributes:
        estimator: a trace estimator.
        key: random key of the solve.
    """

    estimator: Divergence
    key: Key

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " n"]:
        """Return independent unbiased estimates of the trace."""
        del key
        return self.estimator(jvp, x, self.key)

    def standard_error(self, estimates: Float[Array, " n"], scatter: ArrayLike = jnp.inf) -> Scalar:
        """Return the standard error of the mean of `estimates`."""
        del scatter  # the error of one probe is smooth in time
        return self.estimator.standard_error(estimates)
