"""Samples as other programs read them: a folder of PNG files, or one npz file of uint8 levels."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dgjax.files import check_output_file, replace_file, replace_folder, rescue_at
from dgjax.pictures.png import encode_png

__all__ = ["check_export", "export_levels"]


def check_export(place: Path) -> None:
    """Check that samples can be exported to `place`, before they are computed.

    Raises:
        ValueError: if something else is in the place of an npz file, or if it is another file or a
            folder that holds something already.
    """
    if place.suffix == ".npz":
        check_output_file(place)
        return
    if place.exists() and not place.is_dir():
        raise ValueError(f"{place} is a file: name a new folder, or a file that ends in .npz")
    if place.is_dir() and any(place.iterdir()):
        raise ValueError(
            f"the folder {place} is not empty, and a program that compares samples would read all "
            "of it: name another one"
        )


def export_levels(place: Path, levels: UInt8[np.ndarray, "n h w c"]) -> None:
    """Write pictures for other programs.

    Args:
        place: a file that ends in `.npz`, for the array `arr_0` (n, H, W, 3), which the evaluation
            suite of ADM reads, with grey pictures repeated as RGB; else a folder for the files
            `00000.png`, `00001.png`, ...
        levels: uint8 levels (n, H, W, 1 or 3).

    Raises:
        ValueError: as of `check_export`, or if a file cannot be written; the message says where the
            pictures are then.
    """
    check_export(place)
    rescue_at(place, lambda place: _write(place, levels))


def _write(place: Path, levels: np.ndarray) -> None:
    if place.suffix == ".npz":
        colours = np.repeat(levels, 3, -1) if levels.shape[-1] == 1 else levels
        replace_file(place, lambda stream: np.savez(stream, arr_0=colours))
        return
    with replace_folder(place) as new:
        for i, image in enumerate(levels):
            (new / f"{i:05d}.png").write_bytes(encode_png(image))
