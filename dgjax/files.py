"""Write files and folders so that a reader never meets a part of one."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np

__all__ = ["as_json", "output_folder", "replace_file", "write_json"]


def replace_file(file: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file beside its place, flush it to the disk, and rename it into its place.

    Two processes may do so at once, each in a file of its own: the last one to finish wins. Once
    `file` is in its place, partial files that a killed process left beside it are removed.

    Args:
        file: the file to make or to replace.
        write: writes the content to the open binary stream that it is given.

    Raises:
        OSError: if the file cannot be written. What was there before stays.
    """
    beside = file.with_name(f".{file.name}.{uuid4().hex}.partial")
    try:
        with beside.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.replace(beside, file)
        except FileNotFoundError:
            if not file.exists():  # else another process has put it there
                raise
        for other in file.parent.glob(f".{file.name}.*.partial"):
            other.unlink(missing_ok=True)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move to `folder` only when everything has been written.

    Raises:
        ValueError: at once, if `folder` cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix=".dgjax-")
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from error
    with temporary as name:
        yield Path(name)
        try:
            for file in sorted(Path(name).iterdir()):
                os.replace(file, folder / file.name)
        except OSError as error:
            raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from error


def write_json(file: Path, summary: dict[str, Any]) -> None:
    """Write `summary` as indented JSON; numbers that are not finite become null."""
    file.write_text(as_json(summary) + "\n")


def as_json(summary: Any) -> str:
    """Make JSON text in which numbers that are not finite are null."""
    return json.dumps(_plain(summary), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
