"""A number by which an estimator of the divergence is known again, also after it was stored."""

import zlib
from typing import Any

import jax

from dgjax.model.divergence import Divergence

__all__ = ["identify_estimator"]


def identify_estimator(divergence: Divergence) -> int:
    """Return a number that estimators of one kind and with the same settings have in common.

    It is the same in every process. Keys of probes do not count, nor does `chunk`, which only
    bounds memory.

    Args:
        divergence: trace estimator.

    Returns:
        A number that an int32 can hold.
    """
    return zlib.crc32(repr(_settings(divergence)).encode()) >> 1


def _settings(value: Any) -> Any:
    """Return the kind of an estimator, its sizes, its probes and the estimators inside it."""
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    if not hasattr(value, "__dict__") or isinstance(value, jax.Array):
        return value if isinstance(value, int | float | str) else None
    inside = {name: _settings(v) for name, v in vars(value).items() if name != "chunk"}
    return type(value).__qualname__, inside
