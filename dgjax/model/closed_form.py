"""Models whose density is known in closed form at every noise level."""

from dataclasses import dataclass, replace

from jaxtyping import ArrayLike

from dgjax.model.field import Field
from dgjax.model.field import field as make_field
from dgjax.model.gaussian_mixture import GaussianMixture
from dgjax.model.paths import Path, edm
from dgjax.typing import register_dataclass

__all__ = ["closed_form"]


@register_dataclass
@dataclass(frozen=True)
class _MixturePair:
    """The pair of a mixture. Unlike (y - x0)/w, its eps loses no digits at small w."""

    def __call__(self, network, x, t, c, cond):
        del t, cond
        return network.pair(x, c.sigma)  # on the native path alpha is 1

    def log_density(self, network, y, w, cond):
        del cond
        return network.log_density(y, w)


def closed_form(
    mixture: GaussianMixture, path: Path, *, t_min: ArrayLike, t_max: ArrayLike
) -> Field:
    """Make the exact model of a mixture on a path.

    Its prior is the exact density at `t_max`, not a Gaussian.

    Args:
        mixture: the distribution of the data.
        path: the path to sample on.
        t_min: smallest time of the model.
        t_max: largest time of the model.

    Returns:
        A field whose velocity and score are exact.

    Raises:
        ValueError: if alpha or sigma vanishes at t_min or t_max.
    """
    ends = {"t_min": t_min, "t_max": t_max}
    model = make_field(mixture, path, _MixturePair(), **ends, prior=mixture, shape=mixture.shape)
    # On every path the mixture is called in the coordinates y = x/alpha, w = sigma/alpha.
    return replace(model, native=edm())
