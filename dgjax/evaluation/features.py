"""Feature spaces in which samples are compared: functions from samples to vectors, by name.

Name a distance after its feature space: a Fréchet distance between VGG16 features is not an FID,
whose features come from another network.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.checkpoints.configuration import unknown_name
from dgjax.evaluation.vgg16 import vgg16

__all__ = ["FEATURES", "Features", "make_features", "pixels"]

# From (n, *shape), images in [0, 1], to (n, D). A pytree if it has weights.
Features = Callable[[Float[Array, "n ..."]], Float[Array, "n d"]]


def pixels(x: Float[Array, "n ..."]) -> Float[Array, "n d"]:
    """Flatten samples (n, *shape) to vectors (n, D): the feature space that needs no network."""
    return jnp.reshape(x, (x.shape[0], -1))


FEATURES: dict[str, Callable[[], Features]] = {"vgg16": vgg16, "pixels": lambda: pixels}


def make_features(name: str) -> Features:
    """Make a feature space by its name.

    Args:
        name: a key of `FEATURES`.

    Returns:
        A function from samples (n, *shape) to features (n, D).

    Raises:
        ValueError: if no feature space has this name, or its weights are not installed.
    """
    if name not in FEATURES:
        raise unknown_name("feature space", name, FEATURES)
    return FEATURES[name]()
