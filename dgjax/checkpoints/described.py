"""Whether a specification describes a model, so that a checkpoint of both loses nothing."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from dgjax.checkpoints.spec import ModelSpec, build
from dgjax.model.energy import EnergyPrediction
from dgjax.model.field import Field

__all__ = ["describe"]

CONSTANT = "log_normalizer"
PARTS = ("parametrization", "path", "native", "t_min", "t_max", "prior", "shape")


def describe(model: Field, spec: ModelSpec) -> ModelSpec:
    """Return the specification of a model, with the constant of an energy model.

    Args:
        model: the model that is to be saved.
        spec: its specification. Only the constant that `dgjax.normalize` measures may be missing.

    Raises:
        ValueError: if the specification builds another model. Its weights are not compared.
    """
    values = model.parametrization
    if isinstance(values, EnergyPrediction) and spec.parametrization["kind"] == "energy":
        constant = float(values.log_normalizer)
        if constant != spec.parametrization.get(CONSTANT, 0.0):
            spec = replace(spec, parametrization={**spec.parametrization, CONSTANT: constant})
    built = build(spec, model.network)
    for name in PARTS:
        if not _equal(getattr(model, name), getattr(built, name)):
            raise ValueError(
                f"the model's {name} is not that of meta.model, and a checkpoint holds only what "
                f"meta.model says: state it there, or save the model with the {name} it had"
            )
    return spec


def _equal(a: Any, b: Any) -> bool:
    first: Any = jax.tree.structure(a)
    if first != jax.tree.structure(b):
        return False
    return all(map(_close, jax.tree.leaves(a), jax.tree.leaves(b)))


def _close(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=0, equal_nan=True)
