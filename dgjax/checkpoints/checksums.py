"""Checksums of the files of a checkpoint, so that a changed bit is noticed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

__all__ = ["check_files", "hash_files"]


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder and below it, by its path with slashes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _hash(path) for path in files}


def check_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Check that files are those that were written.

    All of each file is read once: about a second per gigabyte.

    Args:
        folder: the checkpoint.
        expected: SHA-256 by path, from `hash_files`.

    Raises:
        ValueError: if a file is missing or has changed; the message names it.
    """
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"the checkpoint {folder} has lost its file {name}: copy it again")
        if _hash(path) != digest:
            raise ValueError(
                f"{path} is not as it was written (its SHA-256 differs): the disk or a copy "
                "damaged it; copy the checkpoint again"
            )


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
