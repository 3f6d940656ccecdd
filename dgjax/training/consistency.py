"""A penalty on the inconsistency of a score network: log-densities then depend less on the route.

Denoising fits the score at each noise level by itself. Nothing makes it a gradient, and nothing
makes the scores of two levels those of one density that obeys the heat equation. The penalty is the
squared curl plus the squared deviation from the heat equation along the probability-flow ODE, as
`dgjax.inconsistency` estimates them without bias. Both are 0 for a true score, so the optimum of
the loss stays the same.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from dgjax.evaluation.inconsistency import inconsistency
from dgjax.model.field import Field
from dgjax.model.paths import coefficients
from dgjax.typing import Cond, Key, Sample, Scalar

__all__ = ["Consistency", "consistency_penalty"]


@dataclass(frozen=True)
class Consistency:
    """The section `[consistency]`: a penalty on the inconsistency of the score.

    Attributes:
        weight: weight of the penalty. A step takes several times as long with it.

    Raises:
        ValueError: if the weight is not positive.
    """

    weight: float = 1.0

    def __post_init__(self):
        if not self.weight > 0:
            raise ValueError(
                f"consistency: weight must be positive, got {self.weight}; without a penalty leave "
                "the section out"
            )


def consistency_penalty(
    model: Field, w: Scalar, data: Sample, noise: Sample, key: Key, cond: Cond = None
) -> Scalar:
    """Return the squared curl plus the squared transport residual at one noisy sample.

    Each is estimated without bias, in (nats per dimension)^2, so that a single value may be
    negative. Both are of the score in units of the noise, and count alike at every noise level.

    Args:
        model: the model.
        w: noise level sigma/alpha.
        data: one clean sample, `shape`.
        noise: standard normal noise, `shape`.
        key: for the probes.
        cond: condition of the network, such as a label.
    """
    t = model.path.time(-2 * jnp.log(w))
    c = coefficients(model.path, t)
    found = inconsistency(model, t, c.alpha * data + c.sigma * noise, key=key, cond=cond)
    return found.curl + found.transport
