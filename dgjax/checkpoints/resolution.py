"""Sample a model at another resolution than that of its checkpoint, where its weights allow it.

Convolutions and attention have weights of the same shapes at any resolution. Networks with a
weight for each place do not, and are refused.
"""

from dataclasses import replace
from typing import Any

import jax
from flax import nnx

from dgjax.checkpoints.autoencoder_spec import Autoencoder, build_autoencoder
from dgjax.checkpoints.meta import Meta
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from dgjax.model.field import Field
from dgjax.networks import SD3Transformer

__all__ = ["resize"]

UNITS = (1, 2, 4, 8, 16, 32)  # of which the sides of a sample may have to be multiples


def resize(
    field: Field, meta: Meta, autoencoder: Autoencoder, height: int | None, width: int | None
) -> tuple[Field, Meta, Autoencoder]:
    """Give a model and its autoencoder another resolution, with the same weights.

    The number of elements D of a sample changes, and with it what a quantile q means in nats. The
    condition of Stable Diffusion XL states the new size of the picture.

    Args:
        field: the model, on its own path.
        meta: facts about it.
        autoencoder: its autoencoder.
        height: height of the pictures in pixels; None for that of the checkpoint.
        width: width of the pictures in pixels; None for that of the checkpoint.

    Returns:
        All three at the new resolution.

    Raises:
        ValueError: if samples are no pictures, the network or the autoencoder has no such
            resolution, or a weight belongs to one resolution; the message names the next size.
    """
    if height is None and width is None:
        return field, meta, autoencoder
    image, shape = autoencoder.image_shape, meta.shape
    if not isinstance(meta.model, ModelSpec):
        raise ValueError("a model that code makes has the resolution that the code gives it")
    if len(image) != 3 or len(shape) != 3:
        raise ValueError(f"samples of shape {shape} are no pictures: they have no height and width")
    size = (height or image[0], width or image[1])
    if size == image[:2]:
        return field, meta, autoencoder
    meta = replace(meta, model=_keep_positions(meta.model, field))
    unit = image[0] // shape[0]  # pixels for one element of a latent
    wanted = f"pictures of {size[0]} x {size[1]} pixels (height x width)"
    sides = tuple(-(-n // unit) for n in size)
    try:
        if any(n % unit for n in size):
            raise ValueError(f"the autoencoder makes multiples of {unit} pixels")
        network = _refit(field.network, _network(meta, sides))
    except ValueError as error:
        raise ValueError(
            f"{wanted} cannot be made: {error}{_nearest(meta, sides, unit)}"
        ) from error
    spec = replace(meta.model, shape=(*sides, shape[2]))
    text = dict(meta.text)
    if text.get("condition", {}).get("kind") == "stable_diffusion_xl":
        text["condition"] = {**text["condition"], "size": list(size)}
    decoder = nnx.eval_shape(lambda: build_autoencoder(meta.autoencoder, spec.shape))
    return (
        build(spec, network),
        replace(meta, model=spec, text=text),
        _refit(autoencoder, decoder),
    )


def _keep_positions(spec: ModelSpec, field: Field) -> ModelSpec:
    """Write down the distance of neighbours where it follows from the shape, which changes."""
    network = field.network
    if not isinstance(network, SD3Transformer):
        return spec
    return replace(spec, network={**spec.network, "base_size": network.pos_embed.base})


def _network(meta: Meta, sides: tuple[int, ...]) -> Any:
    spec = replace(meta.model, shape=(*sides, meta.shape[2]))
    return nnx.eval_shape(lambda: build_network(spec))


def _refit(weights: Any, like: Any) -> Any:
    """Put the weights of a module into one of another resolution.

    Raises:
        ValueError: if they do not have the same names and shapes.
    """
    old, new = (jax.tree_util.tree_flatten_with_path(module) for module in (weights, like))
    shapes = [[(path, leaf.shape) for path, leaf in leaves] for leaves, _ in (old, new)]
    if shapes[0] != shapes[1]:
        raise ValueError("its weights belong to one resolution")
    return jax.tree.unflatten(new[1], [leaf for _, leaf in old[0]])


def _nearest(meta: Meta, sides: tuple[int, ...], unit: int) -> str:
    """Return a hint with the sizes that the model takes, or nothing."""
    for step in UNITS:
        larger = tuple(-(-n // step) * step for n in sides)
        try:
            _network(meta, larger)
            _network(meta, tuple(n + step for n in larger))  # or a size fits by chance
        except ValueError:
            continue
        height, width = (n * unit for n in larger)
        of = f", a multiple of {step * unit} as all sizes of this model" if step * unit > 1 else ""
        return f"; the next larger size is {height} x {width}{of}"
    return ""
