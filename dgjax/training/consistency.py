"""A penalty on the inconsistency of a score, so that its log-density depends less on the route.

A score network that is trained by denoising alone is not the gradient of a density that obeys the
heat equation, so that log-densities by two routes differ (`dgjax.inconsistency`). The penalty is
the square of that, per dimension, at the noisy data of the training step:

    weight E[|J_D - J_D^T|_F^2/D + |w r + (J_D - J_D^T) w s_y|^2/D],

its curl and its transport residual, both by random probes and without bias. A true score has none.
The gradient of the penalty is a third derivative and takes many times as long as that of the
denoising loss. So a few samples of each batch have it, and a model is best trained by denoising
first and then trained on with the penalty.
"""

from dataclasses import dataclass

import jax

from dgjax.evaluation.inconsistency import inconsistency
from dgjax.model.field import Field
from dgjax.model.paths import coefficients
from dgjax.typing import Cond, Key, Sample, Scalar

__all__ = ["Consistency", "compiler_options", "consistency_loss"]


@dataclass(frozen=True)
class Consistency:
    """The section `[consistency]`: a penalty on the inconsistency of the score.

    Attributes:
        weight: weight of the penalty beside the denoising loss.
        every: one of every so many samples of a batch has the penalty, which is their mean.

    Raises:
        ValueError: if the weight is not positive, or `every` is less than 1.
    """

    weight: float = 1.0
    every: int = 8

    def __post_init__(self):
        if not self.weight > 0:
            raise ValueError(f"consistency: weight must be positive, got {self.weight}")
        if self.every < 1:
            raise ValueError(f"consistency: every must be at least 1, got {self.every}")


def consistency_loss(
    model: Field, t: Scalar, data: Sample, noise: Sample, key: Key, cond: Cond = None
) -> Scalar:
    """Estimate the squared curl and transport residual of the score at one noisy sample.

    The noisy sample is alpha data + sigma noise. The estimate is unbiased, and so is its gradient
    in the weights; single ones may be negative.

    Args:
        model: the model.
        t: time on the model's path.
        data: one clean sample, `shape`.
        noise: standard normal noise, `shape`.
        key: for the probes.
        cond: condition of the network, such as a label.

    Returns:
        The sum of both squares, in nats^2 per dimension; zero in expectation for a true score.
    """
    c = coefficients(model.path, t)
    found = inconsistency(model, t, c.alpha * data + c.sigma * noise, key=key, cond=cond)
    return found.curl + found.transport


def compiler_options() -> dict[str, str]:
    """Return compiler options for `jax.jit` with which the gradient of the penalty runs.

    On processors XLA hands parts of it to its library YNNPACK, which crashes on arrays of so many
    axes as the third derivative of a U-Net has (jaxlib 0.10). The options keep that library out.
    Elsewhere, and for versions of XLA that have no such option, there are none.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:  # no such option
        return {}
    return options
