"""Models of conditional densities, made of a model whose network takes conditions."""

from dataclasses import dataclass, replace

from dgjax.model.field import Field
from dgjax.model.parametrization import Network
from dgjax.typing import Cond, Sample, Scalar, register_dataclass

__all__ = ["Conditioned", "condition"]


@register_dataclass
@dataclass(frozen=True)
class Conditioned:
    """A network with a default condition. Made by `condition`.

    Attributes:
        network: the network.
        cond: the condition that it is called with if the caller gives none.
    """

    network: Network
    cond: Cond

    def __call__(self, x: Sample, t: Scalar, cond: Cond) -> Sample:
        """Call the network."""
        return self.network(x, t, self.cond if cond is None else cond)


def condition(model: Field, cond: Cond) -> Field:
    """Return the model of the conditional density given `cond`.

    Args:
        model: a field whose network takes conditions.
        cond: the condition; None returns the model as it is.
    """
    return model if cond is None else replace(model, network=Conditioned(model.network, cond))
