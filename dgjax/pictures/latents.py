"""Pictures of a model's samples, and samples of pictures.

The samples of most models are pictures: nothing is to be done but to round. The samples of a
latent model are decoded and encoded by its autoencoder, in batches of one fixed size.
"""

from collections.abc import Callable

import jax
import numpy as np

from dgjax.checkpoints.opened import Model
from dgjax.devices.batches import batch_runner
from dgjax.pictures.quantization import from_uint8, to_uint8

__all__ = ["from_levels", "from_pictures", "to_levels", "to_pictures"]

BATCH = 8  # pictures in one call of the autoencoder


def to_pictures(model: Model, x: np.ndarray) -> np.ndarray:
    """Decode samples to pictures; the samples of a pixel model are returned as they are.

    Args:
        model: the model.
        x: samples (..., *shape).

    Returns:
        Pictures (..., *image_shape) with values in the model's data range.
    """
    if not model.meta.latent:
        return np.asarray(x)
    return _in_batches(_decode, model, x, model.meta.shape)


def from_pictures(model: Model, pictures: np.ndarray) -> np.ndarray:
    """Encode pictures as samples without noise; for a pixel model they are returned as they are.

    Args:
        model: the model.
        pictures: (..., *image_shape) with values in the model's data range.

    Returns:
        Samples (..., *shape). For a latent model each is the mean of its latent distribution.
    """
    if not model.meta.latent:
        return np.asarray(pictures)
    return _in_batches(_encode, model, pictures, model.image_shape)


def to_levels(model: Model, x: np.ndarray) -> np.ndarray:
    """Decode samples (..., *shape) and round them to uint8 levels (..., *image_shape)."""
    return to_uint8(to_pictures(model, x), model.meta.data_range)


def from_levels(model: Model, levels: np.ndarray) -> np.ndarray:
    """Encode uint8 levels (..., *image_shape) as float32 samples (..., *shape) without noise."""
    return from_pictures(model, from_uint8(levels, model.meta.data_range))


@jax.jit
def _decode(autoencoder, batch):
    return jax.vmap(lambda x: autoencoder.decode(x))(batch)


@jax.jit
def _encode(autoencoder, batch):
    return jax.vmap(lambda picture: autoencoder.encode(picture))(batch)


def _in_batches(
    run: Callable, model: Model, values: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    flat = np.asarray(values, np.float32).reshape(-1, *shape)
    found = batch_runner(run, min(BATCH, len(flat)), model.autoencoder)(flat, lambda count: None)
    return found.reshape(*values.shape[: -len(shape)], *found.shape[1:])
