"""Whether a specification describes a model, so that a checkpoint of both loses nothing."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from dgjax.checkpoints.arrays import to_named
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from dgjax.model.conditioned import Conditioned
from dgjax.model.energy import EnergyPrediction
from dgjax.model.field import Field
from dgjax.model.repath import repath

__all__ = ["describe"]

CONSTANT = "log_normalizer"
PARTS = ("parametrization", "path", "t_min", "t_max", "prior", "shape")
TOLERANCE = 1e-4  # of times that went to another path and back in single precision
ADVICE = {
    "prior": "a checkpoint holds none: save it with dgjax.gaussian_prior() and set it once loaded",
    "parametrization": "state it there (the clock of a dgjax.rescale_time is that of affine_time)",
}


def describe(model: Field, spec: ModelSpec) -> ModelSpec:
    """Return the specification of a model, with the constant of an energy model.

    A model that was moved by `repath`, as all are that `open_model` opens, is described by the
    specification of the path that it came from.

    Args:
        model: the model that is to be saved.
        spec: its specification. Only the constant that `dgjax.normalize` measures may be missing.

    Raises:
        ValueError: if the specification builds another model, or one whose weights have other
            names or shapes. Their values are not compared.
    """
    _check_weights(model, spec)
    values = model.parametrization
    if isinstance(values, EnergyPrediction) and spec.parametrization["kind"] == "energy":
        constant = float(values.log_normalizer)
        if constant != spec.parametrization.get(CONSTANT, 0.0):
            spec = replace(spec, parametrization={**spec.parametrization, CONSTANT: constant})
    built = build(spec, model.network)
    if model.native is not None:
        model = repath(model, model.native)
    for name in PARTS:
        if name == "shape" and model.shape is None:
            continue  # a model need not know it, and the specification does
        if not _equal(getattr(model, name), getattr(built, name)):
            advice = ADVICE.get(name, f"state it there, or save the model with the {name} it had")
            raise ValueError(
                f"the model's {name} is not that of meta.model, and a checkpoint holds only what "
                f"meta.model says: {advice}"
            )
    return spec


def _check_weights(model: Field, spec: ModelSpec) -> None:
    if isinstance(model.network, Conditioned):
        raise ValueError(
            "the model has a condition (dgjax.condition), which no checkpoint holds: save it "
            "without and condition it again once it is loaded"
        )
    wanted = nnx.eval_shape(lambda: build_network(spec))
    found, named = (
        {name: np.shape(leaf) for name, leaf in to_named(network).items()}
        for network in (model.network, wanted)
    )
    if found != named:
        name = min(k for k in found | named if found.get(k) != named.get(k))
        shape = lambda shapes: shapes.get(name, "none")
        raise ValueError(
            f"the model's network is not that of meta.model: the weight {name!r} has shape "
            f"{shape(found)}, and meta.model says {shape(named)}; give the network that was built"
        )


def _equal(a: Any, b: Any) -> bool:
    first: Any = jax.tree.structure(a)
    if first != jax.tree.structure(b):
        return False
    return all(map(_close, jax.tree.leaves(a), jax.tree.leaves(b)))


def _close(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and np.allclose(a, b, rtol=TOLERANCE, atol=0, equal_nan=True)
