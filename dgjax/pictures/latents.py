"""Between a model's samples and 8-bit pictures: where every command turns one into the other.

Samples of most models are pixels, and nothing is to be done but to round. Latents go through the
model's autoencoder, a batch of one size at a time, whatever their number.
"""

from typing import Any

import jax
import numpy as np

from dgjax.checkpoints.opened import Model
from dgjax.devices.batches import walker
from dgjax.pictures.quantization import to_uint8

__all__ = ["LEVELS", "from_pictures", "scale_levels", "to_levels", "to_pictures"]

LEVELS = (0.0, 255.0)  # data range of 8-bit levels
BATCH = 8


def to_pictures(chosen: Model, x: np.ndarray) -> np.ndarray:
    """Pictures (..., *image_shape) of samples (..., *shape), with values in the data range."""
    return _walk(_decode, chosen, x, chosen.meta.shape) if chosen.meta.latent else np.asarray(x)


def from_pictures(chosen: Model, images: np.ndarray) -> np.ndarray:
    """Samples without noise, (..., *shape), of pictures with values in the data range.

    Of an autoencoder's latent it is the mean.
    """
    if not chosen.meta.latent:
        return np.asarray(images)
    return _walk(_encode, chosen, images, chosen.image_shape)


def to_levels(chosen: Model, x: np.ndarray) -> np.ndarray:
    """8-bit levels (..., *image_shape) of samples (..., *shape)."""
    return to_uint8(to_pictures(chosen, x), chosen.meta.data_range)


def scale_levels(chosen: Model, levels: np.ndarray) -> np.ndarray:
    """8-bit levels in the data range, float32."""
    low, high = chosen.meta.data_range
    return low + levels.astype(np.float32) * np.float32((high - low) / 255)


@jax.jit
def _decode(autoencoder, batch):
    return jax.vmap(lambda x: autoencoder.decode(x))(batch)


@jax.jit
def _encode(autoencoder, batch):
    return jax.vmap(lambda image: autoencoder.encode(image))(batch)


def _walk(run: Any, chosen: Model, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    flat = np.asarray(values, np.float32).reshape(-1, *shape)
    found = walker(run, min(BATCH, len(flat)), chosen.autoencoder)(flat, lambda count: None)
    return found.reshape(*values.shape[: -len(shape)], *found.shape[1:])
