"""Open checkpoints of score_sde (arXiv 2011.13456), written by its JAX or its PyTorch program.

Both hold one training run: weights, their moving average, and the optimizer. Arrays are returned
by module and parameter, with the axes and the names that PyTorch has.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import serialization

from dgjax.importing.torch_files import load_torch
from dgjax.importing.weights import StoredArray, torch_array
from dgjax.importing.weights_files import TORCH_ENDINGS

__all__ = ["Modules", "is_score_sde", "open_score_sde"]

# Parameters without a moving average, because training keeps them fixed.
FIXED = re.compile(r"all_modules\.0\.W|sigmas")
NAMES = {"kernel": "weight", "scale": "weight"}
# PyTorch's axes in terms of Flax's, by the number of axes.
AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


class Modules(NamedTuple):
    """The modules of a network.

    Attributes:
        arrays: the parameters by the name of their module, then by their own.
        torch: whether modules are named by their place, as in PyTorch, and not by their class.
        sigmas: the noise levels that the file holds, or None.
        averaged: whether the arrays are the moving average.
    """

    arrays: dict[str, dict[str, StoredArray]]
    torch: bool
    sigmas: np.ndarray | None
    averaged: bool


def is_score_sde(path: Path) -> bool:
    """Return whether a file, or the only file of a folder, is a checkpoint of score_sde."""
    try:
        file = chosen_file(path)
        return file is not None and bool(open_score_sde(file).arrays)
    except ValueError:
        return False


def chosen_file(path: Path) -> Path | None:
    """Return a file that may be such a checkpoint: the path, or the only one in a folder."""
    if path.is_file():
        return path if path.suffix in TORCH_ENDINGS or _is_flax(path) else None
    if not path.is_dir():
        return None
    found = [f for f in path.iterdir() if f.is_file() and chosen_file(f)]
    return found[0] if len(found) == 1 else None


def open_score_sde(file: Path) -> Modules:
    """Open a checkpoint.

    Args:
        file: a file of PyTorch, or one in Flax's msgpack format.

    Returns:
        The modules; none for a file of another program.

    Raises:
        ValueError: if the file is damaged, or the moving average does not fit the weights.
    """
    return _open_flax(file) if _is_flax(file) else _open_torch(file)


def _is_flax(file: Path) -> bool:
    return file.suffix == ".msgpack" or re.fullmatch(r"checkpoint(_\d+)?", file.name) is not None


def _open_torch(file: Path) -> Modules:
    content = load_torch(file)
    table = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(table, Mapping):
        return Modules({}, True, None, False)
    weights = {name.removeprefix("module."): tensor for name, tensor in table.items()}
    if not any(name.startswith("all_modules.") for name in weights):
        return Modules({}, True, None, False)
    average = content.get("ema")
    shadow = average.get("shadow_params") if isinstance(average, Mapping) else None
    if shadow is not None:
        trained = [name for name in weights if not FIXED.fullmatch(name)]
        shapes = [tuple(weights[name].shape) for name in trained]
        if [tuple(tensor.shape) for tensor in shadow] != shapes:
            raise ValueError(
                f"{file}: the moving average has {len(shadow)} arrays, and they are not those of "
                f"the {len(trained)} weights: the file is damaged or of another program"
            )
        weights |= dict(zip(trained, shadow, strict=True))
    arrays: dict[str, dict[str, StoredArray]] = {}
    for name, tensor in weights.items():
        if name.startswith("all_modules."):
            _, module, parameter = name.split(".", 2)
            arrays.setdefault(module, {})[parameter] = torch_array(name, tensor)
    sigmas = weights.get("sigmas")
    levels = None if sigmas is None else np.asarray(torch_array("sigmas", sigmas), np.float64)
    return Modules(arrays, True, levels, shadow is not None)


def _open_flax(file: Path) -> Modules:
    try:
        content = serialization.msgpack_restore(file.read_bytes())
    except Exception as error:  # msgpack and NumPy raise many kinds
        first = str(error).splitlines()[:1]
        raise ValueError(
            f"{file} is damaged, or not of Flax: {type(error).__name__} {first}"
        ) from (error)
    content = content if isinstance(content, Mapping) else {}
    table = content.get("params_ema")
    averaged = isinstance(table, Mapping)
    if not averaged:
        table = (content.get("optimizer") or {}).get("target", content.get("params", content))
    table = table.get("params", table) if isinstance(table, Mapping) else {}
    arrays = {
        module: dict(_flatten(parameters))
        for module, parameters in table.items()
        if isinstance(parameters, Mapping)
    }
    if not any(name.startswith("ResnetBlock") for name in arrays):
        arrays = {}
    return Modules(arrays, False, None, averaged)


def _flatten(parameters: Mapping[str, Any], owner: str = ""):
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{owner}{name}.")
            continue
        array = np.asarray(value)
        if name in ("kernel", "weight"):
            array = array.transpose(AXES[array.ndim])
        yield owner + NAMES.get(name, name), StoredArray(array.shape, array.dtype, array.copy)
