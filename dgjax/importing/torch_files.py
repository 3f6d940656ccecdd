"""Read files of PyTorch without running what is in them."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["load_torch", "one_line"]

# Makes a number of NumPy from its bytes; NumPy writes such numbers as calls of it.
SCALAR: Any = np.float64(0).__reduce__()[0]
# Types of training runs that hold values only: their arguments, and numbers of NumPy, such as the
# learning rate of an optimizer. The module with `scalar` has another name since NumPy 2.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype("float64")),
    type(np.dtype("float32")),
    type(np.dtype("int64")),
    *((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
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
            f"reading {file} needs PyTorch: pip install 'dgjax[torch]', or convert it to "
            "safetensors"
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
