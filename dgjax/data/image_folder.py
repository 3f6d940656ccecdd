"""A folder of images of any size as a data set.

Images are resized and cropped to one shape, labelled by sub-folder, and divided into a training and
a held-out part by their names.
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dgjax.checkpoints.configuration import unknown_name
from dgjax.data.dataset import MOST, Dataset, UncroppedImages
from dgjax.pictures.image_files import (
    FULL,
    IMAGE_SUFFIXES,
    PictureNotes,
    check_levels,
    cover_image,
    fit_image,
    read_image,
)

__all__ = ["CROPS", "PARTS", "is_held_out", "load_folder"]

CROPS = ("centre", "random")
PARTS = ("train", "held-out")


def load_folder(
    path: str | os.PathLike,
    shape: tuple[int, ...],
    *,
    crop: str = "centre",
    held_out: float = 0.0,
    part: str = "train",
    levels: tuple[float, float] = FULL,
) -> Dataset:
    """Load all images under a folder, with values in [-1, 1].

    Images are files that end in one of `IMAGE_SUFFIXES`: PNG, JPEG, WebP, TIFF, BMP, and the first
    frame of a GIF. They come in the order of their names. Each is resized until its shorter side
    fits, then cropped to `shape`. All are decoded once and held as bytes: 100,000 RGB images of
    64x64 take 1.2 GB. With `crop="random"` the whole of the longer side is held. If all images lie
    in sub-folders, the sorted names of the sub-folders are the classes. Files and folders whose
    names begin with a dot are ignored. `notes` of the result names other files that are no images,
    images beside the sub-folders, and pictures of 16 bits that use few of their levels.

    Args:
        path: of the folder.
        shape: of a sample, (H, W, 1) for grey or (H, W, 3) for RGB.
        crop: "centre", or "random" for another position in each batch.
        held_out: fraction of the images that training does not see, chosen by `is_held_out`.
        part: "train" or "held-out".
        levels: of black and of white in pictures of 16 bits, (0, 4095) for those of 12 bits.

    Raises:
        ValueError: if an argument is out of range; the folder is missing; it, or the part, has no
            image; or a file cannot be decoded (the message names the file).
    """
    for what, asked, known in (("crop", crop, CROPS), ("part", part, PARTS)):
        if asked not in known:
            raise unknown_name(what, asked, known)
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be in [0, 1), got {held_out}")
    check_levels(levels)
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(f"a folder of images needs shape (H, W, 1) or (H, W, 3), got {shape}")
    root = Path(path)
    names, others = _image_names(root)
    chosen = [n for n in names if is_held_out(n, held_out) == (part == "held-out")]
    if not chosen:
        raise ValueError(
            f"held_out = {held_out} leaves none of the {len(names)} images in {root} to the part "
            f"{part!r}; choose another fraction"
        )
    labels, classes = None, None
    beside = [name for name in names if "/" not in name]
    if not beside:
        # From all images, so that both parts number the classes alike.
        classes = tuple(sorted({name.split("/")[0] for name in names}))
        labels = np.array([classes.index(name.split("/")[0]) for name in chosen], np.int32)
    values: np.ndarray | UncroppedImages
    seen = PictureNotes(levels)
    if crop == "centre":
        values = np.empty((len(chosen), *shape), np.uint8)
        for i, name in enumerate(chosen):
            values[i] = _decode(root / name, shape, crop, seen)
    else:
        images = [_decode(root / name, shape, crop, seen) for name in chosen]
        values = UncroppedImages(images, shape)
    notes = [
        *_notes(root, len(names), beside, others),
        *seen.notes("set data.levels, such as [0, 4095]"),
    ]
    return Dataset(values, 1 / 127.5, -1.0, (-1.0, 1.0), labels, "unknown", classes, tuple(notes))


def is_held_out(name: str, fraction: float) -> bool:
    """Return whether a file belongs to the held-out part, by a hash of its name alone.

    A file stays in its part when other files are added or removed. A larger fraction holds out all
    files of a smaller one and more.

    Args:
        name: of the file, relative to the folder, with slashes.
        fraction: of the files to hold out.
    """
    # File systems encode accents in two ways; a copy of the folder must be divided alike.
    normalized = unicodedata.normalize("NFC", name).encode()
    return int.from_bytes(hashlib.sha256(normalized).digest()[:8]) < fraction * 2**64


def _notes(root: Path, count: int, beside: list[str], others: list[str]) -> Iterator[str]:
    if others:
        what = "1 file" if len(others) == 1 else f"{len(others):,} files"
        yield f"skipped {what} in {root}, not images: {_list(others)}"
    if beside and len(beside) < count:
        yield (
            f"no classes, since not all images lie in sub-folders of {root}: {_list(beside)}; move "
            "them into one, or out, if the sub-folders are classes"
        )


def _list(names: list[str]) -> str:
    return ", ".join(names[:MOST]) + (", ..." if len(names) > MOST else "")


def _image_names(root: Path) -> tuple[list[str], list[str]]:
    """Return the names of images and of other files, relative to the folder and sorted."""
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; set data.path to the folder of images")
    relative = (file.relative_to(root) for file in root.rglob("*"))
    names, others = [], []
    for file in relative:
        if any(part.startswith(".") for part in file.parts):
            continue
        if file.suffix.lower() in IMAGE_SUFFIXES:
            names.append(file.as_posix())
        elif (root / file).is_file():
            others.append(file.as_posix())
    if not names:
        raise ValueError(f"there is no image in {root}: none of its files ends in {IMAGE_SUFFIXES}")
    return sorted(names), sorted(others)


def _decode(file: Path, shape: tuple[int, ...], crop: str, notes: PictureNotes) -> np.ndarray:
    try:
        image = read_image(file)
    except ValueError as error:
        raise ValueError(f"{error}; replace it, or take it out of the folder") from error
    notes.look(image, shape)
    try:
        resize = fit_image if crop == "centre" else cover_image
        return resize(image, shape, notes.levels)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
