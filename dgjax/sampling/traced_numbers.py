"""Checks of the numbers of models and guides that are made or changed while JAX is tracing.

Elsewhere the constructors have checked them. Under tracing a constructor cannot raise: it replaces
a number that is not allowed by NaN, and the functions here look for it.
"""

import operator
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from dgjax.guidance.schedules import Schedule, Window
from dgjax.guidance.target import Profile
from dgjax.model.faults import Code, Fault, check, first, numbers
from dgjax.model.field import Field, check_noise_range
from dgjax.model.paths import logsnr

__all__ = ["check_guides", "check_model"]

PARTS = (Schedule, Window, Profile)


def check_model(model: Field) -> Code:
    """Check the noise range of a model, and the numbers of all its parts but the network.

    Args:
        model: the field.

    Returns:
        The code of the check; `Fault.NONE` if JAX is not tracing.
    """
    if not isinstance(logsnr(model.path, model.t_min), Tracer):
        return Fault.NONE
    parts = model.path, model.native, model.parametrization, model.prior
    return first(
        check_noise_range(model.path, model.t_min, model.t_max),
        _check_numbers(parts, Fault.MODEL_NUMBER),
    )


def check_guides(guides: Any, noise: Any) -> Code:
    """Check the single numbers, schedules, windows and profiles of guides and noise.

    Other arrays of a guide may contain NaN, and its models are not looked at.

    Args:
        guides: of a solve.
        noise: its noise term, or None.

    Returns:
        The code of the check; `Fault.NONE` if JAX is not tracing them.
    """
    parts = jax.tree.leaves((guides, noise), is_leaf=lambda p: isinstance(p, (*PARTS, Field)))
    single = [p for p in parts if isinstance(p, PARTS) or (isinstance(p, Tracer) and not p.ndim)]
    return _check_numbers(single, Fault.GUIDE_NUMBER)


def _check_numbers(parts: Any, fault: Fault) -> Code:
    """Check that no traced number among the leaves of `parts` is NaN."""
    leaves = [leaf for leaf in jax.tree.leaves(parts) if isinstance(leaf, Tracer)]
    given = numbers(*(leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)))
    if not given:
        return Fault.NONE
    wrong = reduce(operator.or_, (jnp.isnan(value).any() for value in given))
    return check(~wrong, fault, fault.meaning)
