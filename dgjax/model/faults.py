"""Checks of arguments that hold under `jax.jit` too, and the codes of those that fail.

A check has a condition, a message and a code. Where the numbers are known it raises a ValueError.
Where JAX is tracing them it cannot raise, and returns its code as an array instead. `first`
combines the codes of several checks, `refuse` makes a result NaN if a check failed, and the code is
part of the result as `fault`. With `jax.experimental.checkify` a traced check raises its message.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.experimental import checkify
from jax.sharding import AxisType
from jaxtyping import Array, Int

__all__ = [
    "Code",
    "Fault",
    "as_code",
    "check",
    "finite",
    "first",
    "numbers",
    "refuse",
    "require",
]


class Fault(IntEnum):
    """The check that failed in a traced call: `Fault(int(result.info.fault))`.

    Attributes:
        meaning: what is wrong, in words.
    """

    meaning: str

    def __new__(cls, code: int, meaning: str) -> "Fault":
        """Make a member of a code and its meaning."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    NONE = 0, "no check failed"
    MODEL_RANGE = 1, "t_min and t_max of the model do not bound a range of noise on its path"
    MODEL_NUMBER = 2, "a number that makes the path, parametrization or prior is not allowed"
    NOT_DECREASING = 3, "the grid does not decrease"
    NOT_MONOTONE = 4, "the times are not strictly monotone"
    OUT_OF_RANGE = 5, "a time is outside the model's range"
    NOT_FINITE = 6, "a sample or point has NaN or infinite entries"
    NOT_AT_T_MAX = 7, "no log-density is given and the first time is not t_max"
    GUIDE_NUMBER = 8, "a number that makes a guide or a noise term is not allowed"
    BRACKET = 9, "the bracket of q is not inside (0, 1) or not increasing"
    TARGET = 10, "the target log-density is not finite"
    OTHER_MODEL = 11, "the weights were fitted to a model with other noise levels"
    OTHER_DIVERGENCE = 12, "the weights were fitted with another estimator of the divergence"


Code: TypeAlias = Fault | Int[Array, ""]
"""`Fault.NONE` where all numbers are known, else an int32 that is a value of `Fault`."""


def numbers(*values: Any) -> list[Any]:
    """Return values for use in a check, without derivatives.

    Returns:
        NumPy arrays if all numbers are known, else JAX arrays.
    """
    values = tuple(jax.lax.stop_gradient(v) if isinstance(v, core.Tracer) else v for v in values)
    traced = any(isinstance(v, core.Tracer) for v in values)
    return [jnp.asarray(v) if traced else np.asarray(v) for v in values]


def check(holds: Any, fault: Fault, message: str, **shown: Any) -> Code:
    """Raise a ValueError unless `holds`, or return a code where JAX is tracing.

    Args:
        holds: one Boolean, computed from `numbers`.
        fault: the code if it is false.
        message: a format string: what is wrong, why, and the fix.
        **shown: the numbers in the message.

    Returns:
        `Fault.NONE` if the Boolean is known, else an int32: `fault` where it is false, 0 where it
        is true.

    Raises:
        ValueError: if it is known to be false.
    """
    if isinstance(holds, core.Tracer):
        # checkify cannot map a check over a batch that lies on explicit axes of a mesh.
        if AxisType.Explicit not in jax.typeof(holds).sharding.mesh.axis_types:
            checkify.debug_check(holds, message, **{k: jnp.asarray(v) for k, v in shown.items()})
        return jax.lax.select(holds, np.int32(0), np.int32(fault))
    if not holds:
        # As scalars of their own dtype: 1.2 of float32 as an array would have 17 digits.
        shown = {k: v[()] if isinstance(v, np.ndarray) else v for k, v in shown.items()}
        raise ValueError(message.format(**shown))
    return Fault.NONE


def finite(values: Any) -> Any:
    """Return which entries of an array, of NumPy or JAX, are neither NaN nor infinite."""
    return abs(values) < np.inf


def first(*codes: Code) -> Code:
    """Return the first code that is not 0; `Fault.NONE` if all are known to be 0."""
    found: Code = Fault.NONE
    for code in reversed(codes):
        if not isinstance(code, Fault):
            found = jax.lax.select(code == 0, as_code(found), code)
    return found


def as_code(fault: Code) -> Int[Array, ""]:
    """Return the code as an int32 array, for a result."""
    return jnp.asarray(np.int32(fault)) if isinstance(fault, Fault) else fault


def refuse(fault: Code, value: Array) -> Array:
    """Return `value`, or NaN in its place if a check failed.

    The derivative is that of `value`, or NaN as well.
    """
    if isinstance(fault, Fault):
        return value
    one = np.ones((), value.dtype)
    # 1, or the logarithm of -1: no operation makes a NaN where all is well (`jax_debug_nans`).
    return value * (one + jnp.log(jnp.where(fault == 0, one, -one)))


def require(
    name: str,
    value: Array,
    wanted: str,
    holds: Callable[[Any], Any],
    *,
    fix: str = "",
) -> Array:
    """Check the numbers that a constructor is given.

    Args:
        name: what `value` is called in the error message.
        value: a floating array.
        wanted: the condition in words, continuing "`name` must ...".
        holds: maps an array, of NumPy or JAX, to Booleans.
        fix: what the user can do, added to the message.

    Returns:
        `value`. Where JAX is tracing it and `holds` is false of any number, all are NaN: then the
        functions that use the object made of them say so in `fault`.

    Raises:
        ValueError: if the numbers are known and `holds` is false of any.
    """
    (given,) = numbers(value)
    message = f"{name} must {wanted}, got {{given}}" + (f"; {fix}" if fix else "")
    return refuse(check(holds(given).all(), Fault.GUIDE_NUMBER, message, given=given), value)
