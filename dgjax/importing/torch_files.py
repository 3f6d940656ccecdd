"""Read files of PyTorch without running what is in them."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dgjax.messages import install_line

__all__ = ["load_torch", "one_line"]

# Makes a number of NumPy from its bytes; files hold such numbers as calls of it.
SCALAR: Any = np.float64(0).__reduce__()[0]


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    return SCALAR(dtype, data)


# Before NumPy 2 its module had this name, which PyTorch's loader looks up.
_scalar.__module__ = "numpy.core.multiarray"
_scalar.__name__ = _scalar.__qualname__ = "scalar"

# Types of training runs that hold values only: their arguments, and numbers of NumPy, such as the
# learning rate of an optimizer.
HARMLESS: list[Any] = [
    *(argparse.Namespace, SCALAR, _scalar, np.dtype),
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
]


def load_torch(file: Path) -> Any:
    """Load a file of PyTorch by its loader for weights alone, which runs nothing.

    Args:
        file: the file.

    Returns:
        Its content.

    Raises:
        ValueError: if PyTorch is not installed, or the file is damaged or holds more than values.
    """
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"reading {file} needs PyTorch: {install_line('torch')}, or convert it to safetensors"
        ) from None
    load = partial(torch.load, file, map_location="cpu", weights_only=True)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            try:
                return load(mmap=True)
            except (RuntimeError, ValueError):  # the format before PyTorch 1.6 cannot be mapped
                return load()
    except Exception as error:  # pickle, zipfile and torch raise a dozen kinds
        raise ValueError(
            f"{file} is damaged, or holds more than weights and is not read for safety: "
            f"{one_line(error)}"
        ) from error


def one_line(error: Exception) -> str:
    """Return the first line of an error, with its type."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
