"""Result of one check, and the measures of error that checks use."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array

__all__ = ["PRECISION_FIX", "Finding", "judge", "largest", "relative", "rms"]

# The numbers are measured on the shipped model, by experiments/precision.py.
PRECISION_FIX = (
    "this device multiplies in less than float32, which moves log-densities (TF32 by about 0.1 "
    "nats, bfloat16 by 2): set JAX_DEFAULT_MATMUL_PRECISION=highest"
)


class Finding(NamedTuple):
    """Result of one check.

    Attributes:
        claim: what was measured, with its unit.
        expected: the bounds in words.
        measured: the measured value.
        low: lower bound.
        high: upper bound.
        passed: whether low <= measured <= high.
        fix: the likely cause and what to do, if the check failed and this is known; else empty.
    """

    claim: str
    expected: str
    measured: float
    low: float
    high: float
    passed: bool
    fix: str = ""


def judge(claim: str, measured: float, high: float, low: float = 0.0, fix: str = "") -> Finding:
    """Compare a measured value with its bounds.

    Args:
        claim: what was measured, with its unit.
        measured: the value; NaN fails.
        high: upper bound.
        low: lower bound.
        fix: what to do if the check fails.
    """
    passed = bool(low <= measured <= high)
    expected = f"{low:g} to {high:g}" if low else f"at most {high:g}"
    return Finding(claim, expected, float(measured), low, high, passed, "" if passed else fix)


def largest(error: np.ndarray) -> float:
    """Return the largest absolute value."""
    return float(np.max(np.abs(error)))


def rms(error: np.ndarray) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(error))))


def relative(value: Array, truth: Array | np.ndarray) -> float:
    """Return the relative error |value - truth|/|truth| in the Euclidean norm."""
    exact = np.asarray(truth, np.float64)
    return float(np.linalg.norm(np.asarray(value, np.float64) - exact) / np.linalg.norm(exact))
