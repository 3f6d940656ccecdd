"""What a check hands back, and the measures of error that it holds against its bounds."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array

__all__ = ["MEND", "Finding", "judge", "largest", "relative", "rms"]

# What experiments/precision.py measures on the shipped model.
MEND = (
    "this device multiplies in less than float32, which moves log-densities (TF32 by about 0.1 "
    "nats, bfloat16 by 2): set JAX_DEFAULT_MATMUL_PRECISION=highest"
)


class Finding(NamedTuple):
    """What one check found; it passed if `low` <= `measured` <= `high`.

    `mend` says what is wrong and what to do about it, if the check failed and that is known.
    """

    claim: str
    expected: str
    measured: float
    low: float
    high: float
    passed: bool
    mend: str = ""


def judge(claim: str, measured: float, high: float, low: float = 0.0, mend: str = "") -> Finding:
    """The finding that `measured` makes; `mend` is said where it fails."""
    passed = bool(low <= measured <= high)  # never of a NaN
    expected = f"{low:g} to {high:g}" if low else f"at most {high:g}"
    return Finding(claim, expected, float(measured), low, high, passed, "" if passed else mend)


def largest(error: np.ndarray) -> float:
    return float(np.max(np.abs(error)))


def rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(error))))


def relative(value: Array, truth: Array | np.ndarray) -> float:
    """|value - truth| / |truth|."""
    exact = np.asarray(truth, np.float64)
    return float(np.linalg.norm(np.asarray(value, np.float64) - exact) / np.linalg.norm(exact))
