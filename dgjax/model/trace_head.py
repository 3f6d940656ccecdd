"""A head predicts the trace of a model's Jacobian from the pass that the model makes anyway.

A `Field` may carry a head. It reads outputs of layers inside the network, which are recorded while
the network runs, so that one pass serves both.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from dgjax.model.conditioned import Conditioned
from dgjax.model.field import Field
from dgjax.model.parametrization import Network, Pair
from dgjax.model.reverse_mode import has_forward_mode, transpose
from dgjax.typing import Cond, LinearMap, Sample, Scalar

__all__ = ["find_layers", "linearized_denoiser", "record", "recorded_pair"]


def recorded_pair(
    model: Field, t: Scalar, x: Sample, cond: Cond = None, layers: tuple[str, ...] = ()
) -> tuple[Pair, tuple[Array, ...]]:
    """Return the pair of `Field.pair`, and the outputs of layers of the network.

    Args:
        model: the field.
        t: a time on the field's path.
        x: one sample, of any shape.
        cond: condition of the network.
        layers: names of the layers.

    Raises:
        ValueError: if there are layers to record, and the network is no Flax NNX module or has no
            such layer.
    """
    if not layers:
        return model.pair(t, x, cond), ()
    found: dict[str, Array] = {}
    network = record(model.network, layers, found.__setitem__)
    pair = replace(model, network=network).pair(t, x, cond)
    return pair, tuple(found[name] for name in layers)


def linearized_denoiser(
    model: Field, t: Scalar, x: Sample, cond: Cond, layers: tuple[str, ...]
) -> tuple[Sample, LinearMap, tuple[Array, ...]]:
    """Return the denoised sample, products with its Jacobian in x, and outputs of layers.

    Args:
        model: the field.
        t: a time on the field's path.
        x: one sample, of any shape.
        cond: condition of the network.
        layers: names of the layers.
    """
    seen = lambda x: recorded_pair(model, t, x, cond, layers)
    pair, push, features = jax.linearize(seen, x, has_aux=True)
    product: LinearMap = lambda z: push(z).x0
    if not has_forward_mode(push, x):
        product = transpose(product, x)
    return pair.x0, product, features


def record(network: Network, layers: tuple[str, ...], note: Callable[[str, Any], None]) -> Network:
    """Return a copy of a network that notes what some of its layers return.

    Args:
        network: a Flax NNX module, or one with a default condition.
        layers: names of the layers.
        note: called with the name and the output of each layer that runs.

    Raises:
        ValueError: if the network is another function, or has no such layer.
    """
    if isinstance(network, Conditioned):
        return replace(network, network=record(network.network, layers, note))
    if not isinstance(network, nnx.Module):
        raise ValueError(
            f"the head reads layers of a Flax NNX module, and this model's network is a "
            f"{type(network).__name__}: train the head for this model"
        )
    copy = nnx.clone(network)
    for name in sorted(layers, key=lambda name: -name.count(".")):  # inner layers first
        *outer, last = name.split(".")
        parent = layer_at(copy, outer)
        wrapped = _Noting(layer_at(parent, [last]), partial(note, name))
        if last.isdigit():
            parent[int(last)] = wrapped
        else:
            setattr(parent, last, wrapped)
    return copy


def layer_at(network: Any, names: list[str]) -> Any:
    """Return a layer of a network by the names, or the numbers in lists, that lead to it.

    Raises:
        ValueError: if there is none.
    """
    node = network
    for name in names:
        try:
            node = node[int(name)] if name.isdigit() else getattr(node, name)
        except (AttributeError, IndexError, TypeError):
            raise ValueError(
                f"the network {type(network).__name__} has no layer {'.'.join(names)}; train the "
                "head for this network"
            ) from None
    return node


class _Noting:
    """A layer that passes on what it returns."""

    def __init__(self, layer: Any, note: Callable[[Any], None]):
        self.layer, self.note = layer, note

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        out = self.layer(*args, **keywords)
        self.note(out)
        return out


def find_layers(
    model: Field, x: Sample, count: int, cond: Cond = None
) -> dict[str, tuple[int, ...]]:
    """Choose layers of the model's network for a head to read.

    They are blocks (modules that hold other modules), or layers where there are no blocks, spaced
    evenly in the order in which they run, the last of them included.

    Args:
        model: the field.
        x: one sample, or its shape and dtype.
        count: the largest number of layers.
        cond: condition of the network.

    Returns:
        Shapes of their outputs by name; empty if the network is no Flax NNX module, or hides its
        layers in a transformation of its own.
    """
    network = model.network
    while isinstance(network, Conditioned):
        network = network.network
    if not isinstance(network, nnx.Module):
        return {}
    names = dict(_children(network))
    outputs: dict[str, tuple[int, ...]] = {}

    def note(name, out):
        # Where JAX takes the derivative in x, only arrays that depend on x have a tangent.
        if isinstance(out, jax.Array) and hasattr(out, "tangent"):
            outputs.setdefault(name, out.shape)

    def run(x):
        recorded = replace(model, network=record(model.network, tuple(names), note))
        return recorded.pair(model.t_max, x, cond)

    jax.eval_shape(lambda x: jax.jvp(run, (x,), (x,))[0], x)
    rank = max((len(shape) for shape in outputs.values()), default=0)
    full = {name: shape for name, shape in outputs.items() if len(shape) == rank}
    blocks = [name for name in full if any(True for _ in _children(names[name]))]
    chosen = blocks or list(full)
    index = np.unique(np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int))
    picked = tuple(chosen[i] for i in index)
    inside: list[bool] = []

    def read(x):
        features = recorded_pair(model, model.t_max, x, cond, picked)[1]
        inside.extend(hasattr(feature, "tangent") for feature in features)
        return () if any(inside) else features

    try:
        jax.eval_shape(read, x)
    except jax.errors.UnexpectedTracerError:
        return {}
    return {} if any(inside) else {name: full[name] for name in picked}


def _children(node: Any, prefix: str = "") -> Iterator[tuple[str, nnx.Module]]:
    """Yield the modules of a module by name, and below those that hold lists of modules."""
    items = enumerate(node) if isinstance(node, nnx.List) else vars(node).items()
    for name, child in items:
        if not isinstance(child, nnx.Module):
            continue
        if not isinstance(child, nnx.List | nnx.Dict):
            yield f"{prefix}{name}", child
        if isinstance(child, nnx.List | nnx.Dict) or _holds_lists(child):
            yield from _children(child, f"{prefix}{name}.")


def _holds_lists(module: nnx.Module) -> bool:
    return any(isinstance(child, nnx.List | nnx.Dict) for child in vars(module).values())
