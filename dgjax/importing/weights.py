"""Open files of weights as mappings from names to arrays that are read one at a time.

Nothing in a file is ever run: safetensors holds numbers only, and PyTorch's files are read by its
loader for weights alone. Pickles, which can hold programs, are refused.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from dgjax.importing.pickles import is_pickle, refuse_pickle
from dgjax.importing.torch_files import load_torch, one_line
from dgjax.importing.weights_files import TORCH_ENDINGS, choose_file, is_index

__all__ = ["StoredArray", "open_weights", "torch_array", "training_run"]

# Prefixes that PyTorch's wrappers (data parallel, compiled) put before all names.
WRAPPERS = ("module.", "_orig_mod.")
# By safetensors' names. Eight-bit weights are not among them: they need scales, too.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": jnp.dtype("bfloat16"),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "BOOL": np.dtype("bool"),
}


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, which `np.asarray` reads.

    Attributes:
        shape: shape of the array, known without reading it.
        dtype: dtype of the array, known without reading it.
        read: reads the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.read().astype(dtype or self.dtype, copy=False)


def open_weights(source: str | os.PathLike) -> Mapping[str, StoredArray]:
    """Open the weights in a file, in a folder, or in the files that an index lists.

    In a folder, full precision is preferred to half, safetensors to PyTorch's files, and standard
    names to others. Prefixes that PyTorch's wrappers put before all names are removed. In a file of
    a training run with several tables of weights, the averaged one (EMA) is taken.

    Args:
        source: a file, or a folder.

    Returns:
        The arrays by their names. They are read when they are converted to NumPy arrays.

    Raises:
        ValueError: if there are no weights or several candidates, a part is missing or damaged, or
            a file is a pickle, which could only be read by running what is in it.
    """
    source = Path(source)
    file = _choose(source) if source.is_dir() else source
    if not file.is_file():
        raise ValueError(f"there are no weights at {file}")
    return _unwrap(_open_shards(file) if is_index(file.name) else _open_file(file))


def _choose(folder: Path) -> Path:
    try:
        name = choose_file(f.name for f in folder.iterdir() if f.is_file())
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if name is not None:
        return folder / name
    pickles = sorted(filter(is_pickle, folder.iterdir()))
    if pickles:
        raise refuse_pickle(pickles[0])
    if flax := sorted(folder.glob("*.msgpack")):
        raise ValueError(
            f"{folder} has weights of Flax only ({flax[0].name}): convert them with "
            "from_pretrained(..., from_flax=True) and save_pretrained of diffusers"
        )
    raise ValueError(
        f"{folder} has no weights: no file ends in .safetensors, {', '.join(TORCH_ENDINGS)}"
    )


def _unwrap(weights: dict[str, StoredArray]) -> dict[str, StoredArray]:
    """Remove the prefixes of wrappers that all names share, and an average's count of its steps."""
    named = {name: array for name, array in weights.items() if name != "n_averaged"}
    for prefix in WRAPPERS:
        if named and all(name.startswith(prefix) for name in named):
            return _unwrap({name.removeprefix(prefix): a for name, a in named.items()})
    return weights


def _open_shards(index: Path) -> dict[str, StoredArray]:
    try:
        files = json.loads(index.read_text())["weight_map"]
        names = sorted(set(files.values()))
        if not all(Path(name).name == name for name in names):
            raise ValueError("it names files outside its folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights: {one_line(error)}") from error
    found: dict[str, StoredArray] = {}
    for name in names:
        if not (index.parent / name).is_file():
            raise ValueError(f"{index.name} names {name}, which is not in {index.parent}")
        part = _open_file(index.parent / name)
        wrong = sorted(part.keys() ^ {key for key, file in files.items() if file == name})
        if wrong:
            raise ValueError(
                f"{name} does not hold what {index.name} says: {wrong[0]!r} is in one of them only"
            )
        found |= part
    return found


def _open_file(file: Path) -> dict[str, StoredArray]:
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    if file.suffix in TORCH_ENDINGS:
        return _open_torch(file)
    if is_pickle(file):
        raise refuse_pickle(file)
    raise ValueError(
        f"{file} is not a file of weights: its name must end in .safetensors or one of "
        f"{', '.join(TORCH_ENDINGS)}"
    )


def _open_safetensors(file: Path) -> dict[str, StoredArray]:
    try:
        with safe_open(file, "np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            facts = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or not safetensors: {one_line(error)}") from error
    found = {}
    for name, (shape, dtype) in facts.items():
        if dtype not in DTYPES:
            raise ValueError(
                f"{file} holds {name} as {dtype}, and only {', '.join(DTYPES)} are supported"
            )
        found[name] = StoredArray(shape, DTYPES[dtype], partial(_read_tensor, file, name))
    return found


def _read_tensor(file: Path, name: str) -> np.ndarray:
    # A file that stays open would keep in memory what has been read of it.
    with safe_open(file, "np") as opened:
        return opened.get_tensor(name)


def training_run(source: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return what a file of a training run holds beside the weights that `open_weights` takes.

    Args:
        source: as of `open_weights`.

    Returns:
        The names of the tables of weights, the one that is taken first, and the arguments of the
        run; both are empty for a file of another kind.

    Raises:
        ValueError: if the file is damaged or is not read for safety.
    """
    file = _choose(source) if source.is_dir() else source
    if file.suffix not in TORCH_ENDINGS:
        return (), {}
    content = load_torch(file)
    if not isinstance(content, Mapping) or _is_weights(content):
        return (), {}
    tables = sorted(_tables(content), key=lambda name: not _is_average(name))
    arguments = content.get("args")
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    return tuple(tables), dict(arguments) if isinstance(arguments, Mapping) else {}


def _open_torch(file: Path) -> dict[str, StoredArray]:
    content = load_torch(file)
    return {name: torch_array(name, tensor) for name, tensor in _state_dict(file, content).items()}


def _is_weights(part: Any) -> bool:
    import torch

    return (
        isinstance(part, Mapping)
        and len(part) > 0
        and all(isinstance(value, torch.Tensor) for value in part.values())
    )


def _is_average(name: str) -> bool:
    return "ema" in name.lower().split("_")


def _tables(content: Any) -> list[str]:
    parts = content if isinstance(content, Mapping) else {}
    return [str(name) for name, part in parts.items() if _is_weights(part)]


def _state_dict(file: Path, content: Any) -> dict[str, Any]:
    """Return the table of tensors: the content itself or, in a file of a training run, a part."""
    if _is_weights(content):
        return content
    tables = _tables(content)
    chosen = [name for name in tables if _is_average(name)] if len(tables) > 1 else tables
    if len(chosen) != 1:
        raise ValueError(
            f"{file} holds {len(tables)} tables of weights ({', '.join(tables)}) instead "
            "of one: save the right one with safetensors.torch.save_file"
        )
    return content[chosen[0]]


def torch_array(name: str, tensor: Any) -> StoredArray:
    """Return a tensor of PyTorch as a `StoredArray`.

    Args:
        name: name of the tensor in error messages.
        tensor: the tensor.

    Raises:
        ValueError: if its dtype is not supported.
    """
    import torch

    half = tensor.dtype == torch.bfloat16

    def read() -> np.ndarray:
        if half:  # torch cannot convert it, since NumPy has no bfloat16 of its own
            return tensor.contiguous().view(torch.uint16).numpy().view(jnp.bfloat16)
        return tensor.numpy()

    kind = str(tensor.dtype).removeprefix("torch.")
    known = {dtype.name: dtype for dtype in DTYPES.values()}
    if kind not in known:
        raise ValueError(f"{name} is stored as {kind}, and only {', '.join(known)} are supported")
    return StoredArray(tuple(tensor.shape), known[kind], read)
