"""Trace estimators for a linear map given only by its products.

An estimator is a frozen dataclass of static numbers. Called with a linear map it returns
independent unbiased estimates of its trace, shape (n,): their mean is the value, and keeping
them apart along a trajectory gives the standard error of the whole integral, whatever the
correlation in time. The map comes from one `jax.linearize`, so the value and all its products
share one pass of the network.

Keys: samplers hand a fresh key to every step of a fixed grid, so probe noise averages out along
the trajectory. `FixedProbe` holds one key for the whole solve, as adaptive steps need.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgjax.typing import Key, LinearMap, Sample, Scalar, register_dataclass

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
    """Estimates the trace of a linear map on arrays shaped like x."""

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " n"]:
        """Independent unbiased estimates of the trace."""
        ...

    def standard_error(self, estimates: Float[Array, " n"], scatter: ArrayLike = jnp.nan) -> Scalar:
        """Standard error of the mean of `estimates`, or of any linear functional of them.

        `scatter` is what their scatter about a smooth curve in time says of it, where a solver
        knows that: right for probes that are independent in time, and for no others.
        """
        ...


def rademacher(key: Key, x: Sample) -> Sample:
    """Random signs: the least variance of all probes with independent entries."""
    return jax.random.rademacher(key, x.shape, x.dtype)


def gaussian(key: Key, x: Sample) -> Sample:
    """Standard normal entries."""
    return jax.random.normal(key, x.shape, x.dtype)


def sphere(key: Key, x: Sample) -> Sample:
    """Uniform on the sphere of radius sqrt(D)."""
    z = jax.random.normal(key, x.shape, x.dtype)
    return z * jnp.sqrt(x.size / jnp.sum(z**2))


def sampled_error(estimates: Array, scatter: ArrayLike) -> Scalar:
    """Standard error of the mean of independent estimates; of a single one, `scatter`."""
    n = estimates.shape[0]
    if n < 2:  # one estimate says nothing of its own spread
        return jnp.asarray(scatter, estimates.dtype)
    return jnp.std(estimates, ddof=1) / jnp.sqrt(jnp.asarray(n, estimates.dtype))


def check_count(name: str, count: int) -> None:
    """Raise a ValueError unless `count` is a positive int."""
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{name} must be a positive int, got {count!r}")


@register_dataclass
@dataclass(frozen=True)
class Exact:
    """The trace from all D products, `chunk` at a time so that memory is bounded."""

    chunk: int = field(default=64, metadata={"static": True})

    def __post_init__(self):
        check_count("chunk", self.chunk)

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " 1"]:
        del key

        def diagonal(i):
            unit = jnp.zeros(x.size, x.dtype).at[i].set(1).reshape(x.shape)
            return jvp(unit).reshape(-1)[i]

        entries = jax.lax.map(diagonal, jnp.arange(x.size), batch_size=min(self.chunk, x.size))
        return jnp.sum(entries)[None]

    def standard_error(self, estimates: Float[Array, " 1"], scatter: ArrayLike = jnp.nan) -> Scalar:
        del scatter
        return jnp.zeros((), estimates.dtype)


@register_dataclass
@dataclass(frozen=True)
class Untracked:
    """No estimate and no product: log-densities come out as NaN, and samples cost less.

    For samples alone. XLA drops a divergence that nothing reads by itself, unless the solver
    carries something over to the next step, as Multistep, Bosh3, Tsit5 and Dopri5 do.
    """

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " 1"]:
        del jvp, key
        return jnp.full(1, jnp.nan, x.dtype)

    def standard_error(self, estimates: Float[Array, " 1"], scatter: ArrayLike = jnp.nan) -> Scalar:
        del scatter
        return jnp.full((), jnp.nan, estimates.dtype)


@register_dataclass
@dataclass(frozen=True)
class Hutchinson:
    """Mean of z^T A z over random probes z with covariance I (Hutchinson 1989).

    Variance per probe: 2 (|A|_F^2 - |diag A|^2) for Rademacher, 2 |A|_F^2 for Gaussian probes
    (A the symmetric part). `sample` is `rademacher`, `gaussian` or `sphere`, or any function
    (key, x) -> probe.
    """

    probes: int = field(default=1, metadata={"static": True})
    sample: Callable[[Key, Sample], Sample] = field(default=rademacher, metadata={"static": True})

    def __post_init__(self):
        check_count("probes", self.probes)

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " n"]:
        def estimate(key):
            z = self.sample(key, x)
            return jnp.sum(z * jvp(z))

        if self.probes == 1:
            return estimate(jax.random.fold_in(key, 0))[None]
        return jax.vmap(estimate)(jax.random.split(key, self.probes))

    def standard_error(self, estimates: Float[Array, " n"], scatter: ArrayLike = jnp.nan) -> Scalar:
        return sampled_error(estimates, scatter)


@register_dataclass
@dataclass(frozen=True)
class HutchPP:
    """Hutch++ (Meyer et al. 2021): exact on a sketched subspace, Hutchinson on the rest.

    Costs 2 `rank` + `probes` products. The estimates share the subspace and are independent and
    unbiased given it.
    """

    rank: int = field(default=4, metadata={"static": True})
    probes: int = field(default=4, metadata={"static": True})

    def __post_init__(self):
        check_count("rank", self.rank)
        check_count("probes", self.probes)

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " n"]:
        if self.rank > x.size:
            raise ValueError(f"rank {self.rank} exceeds the dimension {x.size}; lower it")
        sketch_key, probe_key = jax.random.split(key)

        def product(z):
            return jvp(z.reshape(x.shape)).reshape(-1)

        # A Gaussian sketch: in few dimensions random signs often coincide.
        sketch = jax.random.normal(sketch_key, (self.rank, x.size), x.dtype)
        basis = jnp.linalg.qr(jax.vmap(product)(sketch).T)[0].T
        captured = jnp.sum(basis * jax.vmap(product)(basis))
        z = jax.random.rademacher(probe_key, (self.probes, x.size), x.dtype)
        z = z - (z @ basis.T) @ basis
        return captured + jnp.sum(z * jax.vmap(product)(z), axis=-1)

    def standard_error(self, estimates: Float[Array, " n"], scatter: ArrayLike = jnp.nan) -> Scalar:
        return sampled_error(estimates, scatter)


@register_dataclass
@dataclass(frozen=True)
class FixedProbe:
    """`estimator` with one key for the whole solve, instead of a fresh one per step.

    The integrand is then a smooth function of time, as adaptive step control needs, and its
    probe errors do not average out along the trajectory. Under `vmap` give each sample its key.
    """

    estimator: Divergence
    key: Key

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " n"]:
        del key
        return self.estimator(jvp, x, self.key)

    def standard_error(self, estimates: Float[Array, " n"], scatter: ArrayLike = jnp.nan) -> Scalar:
        del scatter  # what one probe gets wrong is smooth in time
        return self.estimator.standard_error(estimates)
