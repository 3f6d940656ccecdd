"""Feature spaces in which samples are compared: a function from samples to vectors, by name.

A figure is one of its feature space: "Fréchet VGG16 distance" is no FID, whose features are those
of another network.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgjax.configuration import unknown_name
from dgjax.evaluation.vgg16 import vgg16

__all__ = ["FEATURES", "Features", "make_features", "pixels"]

# (n, *shape) with images in [0, 1] -> (n, D). A pytree, if it has weights.
Features = Callable[[Float[Array, "n ..."]], Float[Array, "n d"]]


def pixels(x: Float[Array, "n ..."]) -> Float[Array, "n d"]:
    """The samples themselves, flattened: of any shape, and nothing to install."""
    return jnp.reshape(x, (x.shape[0], -1))


FEATURES: dict[str, Callable[[], Features]] = {"vgg16": vgg16, "pixels": lambda: pixels}


def make_features(name: str) -> Features:
    """A feature space by its name.

    Raises:
        ValueError: if there is none of this name, or its weights are not installed.
    """
    if name not in FEATURES:
        raise unknown_name("feature space", name, FEATURES)
    return FEATURES[name]()
