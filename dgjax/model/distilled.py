"""The distilled divergence: a head of the model predicts it, without a product with the Jacobian.

The head is trained for one network. Its error does not average out over the steps as probe noise
does, so the stated error adds up the error at each noise level as if it kept its sign.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgjax.model.divergence import Divergence
from dgjax.typing import Key, LinearMap, Sample, Scalar, register_dataclass

__all__ = ["Distilled", "KnownTrace", "count_estimates"]


class KnownTrace:
    """A linear map whose trace is predicted. `evaluate` passes it to the estimator.

    Attributes:
        product: the map itself.
        trace: its predicted trace.
        error: the root mean square error of `trace`.
    """

    def __init__(self, product: LinearMap, trace: Scalar, error: Scalar):
        self.product, self.trace, self.error = product, trace, error

    def __call__(self, z: Sample) -> Sample:
        """Return the product of the map with z."""
        return self.product(z)


@register_dataclass
@dataclass(frozen=True)
class Distilled:
    """Predict the divergence with the head that the model carries: one evaluation, no product.

    `dgjax.training.distil` trains the head and measures its error on samples that it was not
    trained on. The log-density is biased by that error. The two estimates are the prediction plus
    and minus its root mean square error at this noise level, so the standard error of an integral
    is the integral of these errors: that of a trajectory along which the error keeps its sign. It
    holds for samples such as those that measured it, not for others.

    Raises:
        ValueError: when called, if the model carries no head, or for another linear map than the
            Jacobian of the denoised sample.
    """

    def __call__(self, jvp: LinearMap, x: Sample, key: Key) -> Float[Array, " 2"]:
        """Return the predicted trace plus and minus its error."""
        del x, key
        if not isinstance(jvp, KnownTrace):
            raise ValueError(
                "Distilled() needs a model that carries a trained head, and predicts the "
                "divergence of its velocity only: train the head with dgjax.training.distil, or "
                "take another estimator, such as Hutchinson()"
            )
        return jnp.stack([jvp.trace + jvp.error, jvp.trace - jvp.error])

    def standard_error(self, estimates: Float[Array, " 2"], scatter: ArrayLike = jnp.inf) -> Scalar:
        """Return half of the distance between the two estimates."""
        del scatter  # the error is smooth in time
        return jnp.abs(estimates[0] - estimates[1]) / 2


def count_estimates(divergence: Divergence, x: Sample, key: Key) -> jax.ShapeDtypeStruct:
    """Return shape `(n,)` and dtype of the estimates of a trace estimator.

    Args:
        divergence: the estimator.
        x: gives the shape and the dtype.
        key: a random key.
    """

    def estimates(x, key):
        zero = jnp.zeros((), x.dtype)
        return divergence(KnownTrace(lambda z: z, zero, zero), x, key)

    return jax.eval_shape(estimates, x, key)
