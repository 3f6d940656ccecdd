"""One line for the errors of `jax.shard_map` about values that vary over its mesh.

With `check_vma=True`, the default of `jax.shard_map`, loops and linear maps want constants with the
same type as the data beside them. Solves, divergences and root finders do not run there.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["explain_manual_axes"]

# Of errors about values that differ between the devices of a `shard_map`.
VARYING = ("manual axis types", "to='varying'")
Function = TypeVar("Function", bound=Callable[..., Any])


def explain_manual_axes(function: Function) -> Function:
    """Return `function` with errors of `jax.shard_map`'s `check_vma=True` that name the fix."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (TypeError, ValueError) as error:
            if not any(words in str(error) for words in VARYING):
                raise
            raise ValueError(
                "this does not run inside jax.shard_map with check_vma=True: pass "
                "check_vma=False, or use dgjax.devices.over_devices"
            ) from error

    return call  # type: ignore[return-value]
