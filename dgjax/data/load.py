"""Data sets by name, held whole in memory."""

import gzip
import math
import os
from pathlib import Path

import numpy as np

from dgjax.configuration import unknown_name
from dgjax.data.config import Data
from dgjax.data.dataset import Dataset
from dgjax.data.folder import PARTS, load_folder

__all__ = ["DATASETS", "NoHeldOut", "load_data", "load_dataset", "read_idx"]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
UPSTREAM = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FILES = {  # hashes of the upstream files; Debian's hold the same bytes in another gzip wrapper
    "train": {
        "train-images-idx3-ubyte.gz": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte.gz": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
    },
    "held-out": {
        "t10k-images-idx3-ubyte.gz": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
}
TO_UNIT = (1 / 127.5, -1.0, (-1.0, 1.0))  # bytes to [-1, 1]: scale, offset, range
DATASETS = ("fashion-mnist", "digits", "npz", "folder")


class NoHeldOut(ValueError):
    """The data have no part that training does not see."""


def load_data(data: Data, shape: tuple[int, ...], part: str = "train") -> Dataset:
    """The data set of a configuration.

    Args:
        data: the configuration's table.
        shape: of the model's samples; a folder of images is made to fit it.
        part: "train", or "held-out" for what training never sees.

    Raises:
        NoHeldOut: if there is no such part: a folder without `held_out`, an npz without that array.
        ValueError: if the data are not to be had, or the part is unknown or empty.
    """
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    if data.dataset != "folder" or data.path is None:
        return load_dataset(data.dataset, data.path, part)
    if part == "held-out" and not data.held_out:
        raise NoHeldOut(f"{data.path} has no held-out part: set held_out to a fraction above 0")
    return load_folder(data.path, shape, crop=data.crop, held_out=data.held_out, part=part)


def load_dataset(name: str, path: str | os.PathLike | None = None, part: str = "train") -> Dataset:
    """A data set that has a shape of its own, by name; `load_folder` makes one of images.

    "fashion-mnist": 60,000 images (28, 28, 1) in [-1, 1], 10,000 held out, from `path`, Debian's
    package dataset-fashion-mnist, or downloaded once into pooch's cache. "digits": scikit-learn's
    1,797 images (8, 8, 1) in [-1, 1], the last fifth held out. "npz": `path` with an array `x`
    (N, *shape), uint8 (then taken to [-1, 1]) or floating (taken as it is), and perhaps
    whole-number `labels` (N,); held out are `held_out` and `held_out_labels`, if they are there.

    Raises:
        NoHeldOut: if that part is asked for and there is none.
        ValueError: if the name or the part is unknown, or the data are not to be had; it says how
            to get them.
    """
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    if name == "fashion-mnist":
        return _fashion_mnist(None if path is None else Path(path), part)
    if name == "digits":
        return _digits(part)
    if name == "npz":
        return _npz(path, part)
    if name == "folder":
        raise ValueError("data set folder needs a path and the model's shape: use load_folder")
    raise unknown_name("data set", name, DATASETS)


def _fashion_mnist(folder: Path | None, part: str) -> Dataset:
    if folder is None and DEBIAN.is_dir():
        folder = DEBIAN
    images, labels = (
        read_idx(_download(name, sha256) if folder is None else folder / name)
        for name, sha256 in FILES[part].items()
    )
    licence = "Fashion-MNIST, copyright 2017 Zalando SE, MIT licence"
    return Dataset(images[..., None], *TO_UNIT, labels, licence)


def _download(name: str, sha256: str) -> Path:
    try:
        import pooch

        cache = pooch.os_cache("dgjax") / "fashion-mnist"
        return Path(pooch.retrieve(UPSTREAM + name, f"sha256:{sha256}", name, cache))
    except Exception as error:  # no pooch, no network, another hash: the mend is the same
        raise ValueError(
            f"Fashion-MNIST is not at hand and cannot be downloaded ({error}): "
            f"`apt install dataset-fashion-mnist`, or put {name} and its fellows in a folder and "
            'name it in the config as data.path, or `pip install "dgjax[train]"`'
        ) from error


def read_idx(file: str | os.PathLike) -> np.ndarray:
    """The uint8 array in a gzipped IDX file (LeCun's format: magic, sizes, bytes).

    Raises:
        ValueError: if the file is missing, truncated or of another kind.
    """
    try:
        with gzip.open(file, "rb") as stream:
            content = stream.read()
    except (OSError, EOFError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{file} is not a gzipped IDX file of bytes")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{file} is truncated: {len(content) - start} bytes for shape {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _digits(part: str) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError('digits needs scikit-learn: `pip install "dgjax[train]"`') from error
    data = load_digits()
    licence = "UCI optical recognition of handwritten digits (Alpaydin, Kaynak), CC BY 4.0"
    images = data.images[..., None].astype(np.uint8)
    last = len(images) * 4 // 5
    rows = slice(last) if part == "train" else slice(last, None)
    labels = data.target[rows].astype(np.int32)
    return Dataset(images[rows], 1 / 8, -1.0, (-1.0, 1.0), labels, licence)


def _npz(path: str | os.PathLike | None, part: str) -> Dataset:
    if path is None:
        raise ValueError("data set npz needs a path: set data.path to the file")
    name, names = ("x", "labels") if part == "train" else ("held_out", "held_out_labels")
    try:
        with np.load(path) as arrays:
            contents = {n: arrays[n] for n in (name, names) if n in arrays}
    except Exception as error:  # NumPy and zipfile raise a handful of kinds on damaged files
        raise ValueError(
            f"cannot read {path} as npz ({error}): set data.path to the file, or make it again"
        ) from error
    x, labels = contents.get(name), contents.get(names)
    if x is None and part == "held-out":
        raise NoHeldOut(f"{path} has no held-out part: add an array held_out (M, *shape)")
    if x is None or x.ndim < 2 or x.size == 0:
        raise ValueError(f"{path} must hold an array {name} (N, *shape) with N > 0")
    if labels is not None and (labels.shape != x.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(f"{path}: {names} must be whole numbers of shape {x.shape[:1]}")
    if x.dtype == np.uint8:
        return Dataset(x, *TO_UNIT, labels, "unknown")
    if x.dtype.kind != "f" or not np.isfinite(x).all():
        raise ValueError(f"{path}: {name} must be uint8 or finite floating numbers, got {x.dtype}")
    return Dataset(x, 1.0, 0.0, (float(x.min()), float(x.max())), labels, "unknown")
