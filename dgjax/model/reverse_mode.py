"""Products with a Jacobian in reverse mode, for networks that have no forward mode.

A network with a `jax.custom_vjp`, such as fused attention, cannot be differentiated in forward
mode. The trace of a matrix is that of its transpose, so trace estimators serve with products by
the transposed Jacobian, which reverse mode gives.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.distilled import KnownTrace
from dgjax.model.divergence import Divergence
from dgjax.typing import Key, LinearMap, Sample, Scalar, register_dataclass

__all__ = ["ReverseMode", "has_forward_mode", "transpose"]


class _Transposed:
    """The transpose of a linear map from arrays of the shape of x to the same."""

    def __init__(self, linear_map: LinearMap, x: Sample):
        self.product = jax.linear_transpose(linear_map, x)

    def __call__(self, z: Sample) -> Sample:
        return self.product(z)[0]


def transpose(linear_map: LinearMap, x: Sample) -> LinearMap:
    """Return the transpose of a linear map; a map that is a transpose already is returned as is.

    Args:
        linear_map: from arrays of the shape of x to arrays of the same shape.
        x: gives the shape and the dtype.
    """
    if isinstance(linear_map, KnownTrace):
        linear_map = linear_map.product
    return linear_map if isinstance(linear_map, _Transposed) else _Transposed(linear_map, x)


def has_forward_mode(push: LinearMap, x: Sample) -> bool:
    """Return whether the linear part of a `jax.linearize` can be evaluated.

    It is traced and not run. JAX refuses a function with a `jax.custom_vjp` when its derivative is
    evaluated; under `vmap` it does so while tracing, which takes ten times as long. So only linear
    parts with a custom operation are traced under `vmap`.

    Args:
        push: the linear part.
        x: gives the shape and the dtype of its argument.
    """
    if not _has_custom(jax.make_jaxpr(push)(jax.ShapeDtypeStruct(x.shape, x.dtype))):
        return True
    try:
        jax.eval_shape(jax.vmap(push), jax.ShapeDtypeStruct((1, *x.shape), x.dtype))
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        return False
    return True


def _has_custom(program: Any) -> bool:
    """Return whether a jaxpr, or one inside of it, has an operation with a custom derivative."""
    inside = jax.tree.leaves(
        [equation.params for equation in program.eqns],
        is_leaf=lambda value: isinstance(value, Jaxpr | ClosedJaxpr),
    )
    return any("custom" in equation.primitive.name for equation in program.eqns) or any(
        _has_custom(value) for value in inside if isinstance(value, Jaxpr | ClosedJaxpr)
    )


@register_dataclass
@dataclass(frozen=True)
class ReverseMode:
    """Use `estimator` with products by the transposed Jacobian, from reverse mode.

    The estimates are as good, since both maps have one trace and one symmetric part. A product
    costs about twice as much. Networks without forward mode get it by themselves. Ask for it where
    the backward pass of a network is the better program, for instance one of a fused kernel.

    Attributes:
        estimator: a trace estimator.

    Examples:
        >>> import dgjax
        >>> model = dgjax.closed_form(
        ...     dgjax.gaussian([1.0, 2.0], 0.5), dgjax.edm(), t_min=0.1, t_max=10.0
        ... )
        >>> reverse = dgjax.ReverseMode(dgjax.Exact())
        >>> x, key = jax.numpy.ones(2), jax.random.key(0)
        >>> local = dgjax.evaluate(model, 1.0, x, divergence=reverse, key=key)
        >>> print(f"{local.laplacian:.4f}")  # -2/(0.5 + 1)
        -1.3333
    """

    estimator: Divergence

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " n"]:
        """Return independent unbiased estimates of the trace."""
        return self.estimator(transpose(jvp, x), x, key)

    def standard_error(self, estimates: Float[Array, " n"], scatter: ArrayLike = jnp.inf) -> Scalar:
        """Return the standard error of the mean of `estimates`."""
        return self.estimator.standard_error(estimates, scatter)
