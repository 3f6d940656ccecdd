"""Data sets by name: Fashion-MNIST, scikit-learn's digits, npz files, folders of images."""

import gzip
import math
import os
from pathlib import Path

import numpy as np

from dgjax.checkpoints.configuration import unknown_name
from dgjax.data.data_config import DataConfig
from dgjax.data.dataset import Dataset
from dgjax.data.image_folder import PARTS, load_folder
from dgjax.messages import install_line
from dgjax.pictures.image_files import FULL

__all__ = ["DATASETS", "NoHeldOut", "load_data", "load_dataset", "read_idx"]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
UPSTREAM = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST_FILES = {  # SHA-256 of the upstream files; Debian's files are compressed differently
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
FASHION_MNIST_CLASSES = (
    "T-shirt, Top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
BYTES = (1 / 127.5, -1.0, (-1.0, 1.0))  # scale, offset and range that map bytes to [-1, 1]
DATASETS = ("fashion-mnist", "digits", "npz", "folder")


class NoHeldOut(ValueError):
    """Error of data that have no held-out part."""


def load_data(data: DataConfig, shape: tuple[int, ...], part: str = "train") -> Dataset:
    """Load a part of the data set that a configuration names.

    Args:
        data: the section `[data]`.
        shape: of the model's samples; a folder of images is resized and cropped to it.
        part: "train", or "held-out" for the part that training never sees.

    Raises:
        NoHeldOut: if the held-out part does not exist: of a folder with `held_out = 0`, or of an
            npz file without the array `held_out`.
        ValueError: if the data are not available, or the part is unknown or empty.
    """
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    if data.dataset != "folder" or data.path is None:
        return load_dataset(data.dataset, data.path, part)
    if part == "held-out" and not data.held_out:
        raise NoHeldOut(
            f"{data.path} has no held-out part: set held_out (--held-out) to a fraction "
            "above 0, or take the part train (--part train)"
        )
    return load_folder(
        data.path,
        shape,
        crop=data.crop,
        held_out=data.held_out,
        part=part,
        levels=data.levels or FULL,
    )


def load_dataset(name: str, path: str | os.PathLike | None = None, part: str = "train") -> Dataset:
    """Load a data set by its name, other than a folder of images (see `load_folder`).

    * "fashion-mnist": 60,000 images (28, 28, 1) in [-1, 1], and 10,000 held out. They are read from
      `path`, or from Debian's package dataset-fashion-mnist, or downloaded once to pooch's cache.
      Their ten classes have names.
    * "digits": the 1,797 images (8, 8, 1) of scikit-learn, in [-1, 1]. The last fifth is held out.
    * "npz": the file `path` with an array `x` (N, *shape) and optional whole-number `labels` (N,).
      uint8 is scaled to [-1, 1]; floating-point numbers are used unchanged. The held-out part is
      the arrays `held_out` and `held_out_labels`. An array `classes` of strings names the labels.

    Args:
        name: of the data set.
        path: its file or folder.
        part: "train" or "held-out".

    Raises:
        NoHeldOut: if the held-out part is requested and does not exist.
        ValueError: if the name or the part is unknown, or the data are not available; the message
            says how to get them.
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
        for name, sha256 in FASHION_MNIST_FILES[part].items()
    )
    licence = "Fashion-MNIST, copyright 2017 Zalando SE, MIT licence"
    return Dataset(images[..., None], *BYTES, labels, licence, FASHION_MNIST_CLASSES)


def _download(name: str, sha256: str) -> Path:
    other = (
        f"put {name} and the other files in a folder and set data.path to it, or on Debian "
        "`apt install dataset-fashion-mnist`"
    )
    try:
        import pooch
    except ImportError:
        raise ValueError(
            f"Fashion-MNIST is not on this machine: `{install_line('train')}` downloads it. Or "
            f"{other}"
        ) from None
    try:
        cache = pooch.os_cache("dgjax") / "fashion-mnist"
        return Path(pooch.retrieve(UPSTREAM + name, f"sha256:{sha256}", name, cache))
    except Exception as error:  # no network (with a long text), or a wrong hash
        reason = error if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(
            f"Fashion-MNIST is not on this machine, and {UPSTREAM + name} cannot be downloaded "
            f"({reason}): try again with a network, or {other}"
        ) from error


def read_idx(file: str | os.PathLike) -> np.ndarray:
    """Read the uint8 array in a gzipped IDX file, the format of MNIST.

    Args:
        file: path of the file.

    Raises:
        ValueError: if the file is missing, truncated, or not a gzipped IDX file of bytes.
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
        raise ValueError(f"digits needs scikit-learn: `{install_line('train')}`") from error
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
            contents = {n: arrays[n] for n in (name, names, "classes") if n in arrays}
    except ValueError as error:  # NumPy's own text advises to load it as a pickle
        raise ValueError(
            f"cannot read {path} as npz (damaged, or not of numbers): set data.path to the file, "
            "or write it again"
        ) from error
    except Exception as error:  # NumPy and zipfile raise many kinds of errors on damaged files
        raise ValueError(
            f"cannot read {path} as npz ({error}): set data.path to the file, or write it again"
        ) from error
    x, labels = contents.get(name), contents.get(names)
    if x is None and part == "held-out":
        raise NoHeldOut(
            f"{path} has no held-out part: add an array held_out (M, *shape), or take the part "
            "train"
        )
    if x is None or x.ndim < 2 or x.size == 0:
        raise ValueError(f"{path} must hold an array {name} (N, *shape) with N > 0")
    if labels is not None and (labels.shape != x.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(f"{path}: {names} must be whole numbers of shape {x.shape[:1]}")
    classes = _class_names(path, labels, contents.get("classes"))
    if x.dtype == np.uint8:
        return Dataset(x, *BYTES, labels, "unknown", classes)
    if x.dtype.kind != "f":
        raise ValueError(f"{path}: {name} must be uint8 or floating numbers, got {x.dtype}")
    check_values(x, f"{path}: {name}")
    return Dataset(x, 1.0, 0.0, (float(x.min()), float(x.max())), labels, "unknown", classes)


def _class_names(
    path: str | os.PathLike, labels: np.ndarray | None, classes: np.ndarray | None
) -> tuple[str, ...] | None:
    """Return the names of the labels in an npz file, or None if it has no names.

    Raises:
        ValueError: if they are no strings, or a label has no name.
    """
    if classes is None or labels is None:
        return None
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise ValueError(f"{path}: classes must be strings of shape (K,), got {classes.dtype}")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"{path}: classes names the labels 0 to {len(classes) - 1}, and there are labels from "
            f"{labels.min()} to {labels.max()}"
        )
    return tuple(classes.tolist())


def check_values(x: np.ndarray, what: str) -> None:
    """Check that numbers can be data: finite in float32, and not all the same.

    Args:
        x: (N, *shape) floating numbers.
        what: names them in the error message.

    Raises:
        ValueError: if a number is NaN, infinite or too large, or all are equal.
    """
    with np.errstate(over="ignore"):
        finite = np.isfinite(x.astype(np.float32)).reshape(len(x), -1)
    bad = np.flatnonzero(~finite.all(1))
    if bad.size:
        row = int(bad[0])
        value = x[row].reshape(-1)[~finite[row]][0]
        raise ValueError(
            f"{what} has {value:g} in row {row} ({bad.size} of {len(x)} rows are bad): "
            "numbers must be finite and fit float32; take these rows out"
        )
    if x.min() == x.max():
        raise ValueError(f"{what} is {x.min():g} everywhere: constant data have no density")
