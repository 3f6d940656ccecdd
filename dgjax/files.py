"""Write files and folders atomically: a reader sees the old content or all of the new one.

New content is written beside its destination, flushed to the disk (`fsync`) and then renamed.
A process that is killed before the rename leaves the old content as it was. What such a process
leaves beside a file or folder is removed by the next successful write to the same place.
"""

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np

__all__ = [
    "as_json",
    "check_output_file",
    "output_folder",
    "replace_file",
    "replace_folder",
    "rescue",
    "rescue_at",
    "write_arrays",
    "write_json",
]


def replace_file(file: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file atomically, replacing one that is there; missing parent folders are made.

    Two processes may write the same file at once. Each writes a partial file of its own, and the
    last one to finish wins.

    Args:
        file: the file to make or to replace.
        write: writes the content to the open binary stream that it is given.

    Raises:
        ValueError: if the file cannot be written, or something else is in its place, such as a
            device. The old content stays.
    """
    file = _target(file, "file", Path.is_file)
    partial = _partial(file)
    with _explain(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            try:
                os.replace(partial, file)
            except FileNotFoundError:  # another process has finished, and removed our partial file
                if not file.exists():
                    raise
            _sync(file.parent)
        finally:
            partial.unlink(missing_ok=True)
        _remove_partials(file)


@contextmanager
def replace_folder(
    folder: Path, keep: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """Yield an empty temporary folder, which takes the place of `folder` when the block ends.

    Nothing changes if the block raises. Only one process may write `folder` at a time. An existing
    folder is moved away just before the new one is renamed. A process killed between these two
    renames leaves it beside the destination, in a folder whose name ends in `.partial`.

    Args:
        folder: the folder to make or to replace; missing parent folders are made.
        keep: whether a file or folder of this name, directly in the old folder, is also in the new
            one. What the block writes under the same name takes its place.

    Raises:
        ValueError: if the folder cannot be written, or something else is in its place. The old
            content stays.
    """
    folder = _target(folder, "folder", Path.is_dir)
    partial = _partial(folder)
    new, old = partial / "new", partial / "old"
    with _explain(folder):
        try:
            new.mkdir(parents=True)
            yield new
            for path in new.rglob("*"):
                _sync(path)
            for path in folder.iterdir() if folder.exists() else ():
                if keep(path.name) and not (new / path.name).exists():
                    _link(path, new / path.name)
            _sync(new)
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
            _sync(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _remove_partials(folder)


@contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move into `folder` when the block ends.

    Each file is replaced atomically. Other files in `folder` stay, and nothing moves if the block
    raises. Several processes may write to one folder, so what a killed process leaves, a hidden
    folder `.dgjax-*`, is not removed.

    Args:
        folder: the folder to write to; made if it is missing.

    Raises:
        ValueError: if `folder` cannot be written, or something else is in its place; where possible
            before the block runs.
    """
    folder = _target(folder, "folder", Path.is_dir)
    with _explain(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix=".dgjax-")
    with temporary as name, _explain(folder):
        yield Path(name)
        with _explain(folder):
            files = sorted(Path(name).iterdir())
            for file in files:
                _sync(file)
            for file in files:
                os.replace(file, folder / file.name)
            _sync(folder)


def check_output_file(file: Path) -> None:
    """Check, before its content is computed, that a file can take its place.

    Raises:
        ValueError: if something else is there, such as a folder or a device.
    """
    _target(file, "file", Path.is_file)


def write_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Write an npz file atomically, or save it elsewhere if that fails.

    Raises:
        ValueError: if the file cannot be written. The old content stays. If there is room in the
            folder for temporary files, the arrays are there, and the message says where.
    """
    rescue(file, lambda stream: np.savez_compressed(stream, **arrays))


def rescue(file: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file like `replace_file`, or into the folder for temporary files if that fails.

    Args:
        file: the file to make or to replace.
        write: writes the content to the open binary stream that it is given.

    Raises:
        ValueError: if the file cannot be written; the message says where its content is.
    """
    rescue_at(file, lambda place: replace_file(place, write))


def rescue_at(destination: Path, write: Callable[[Path], Any]) -> None:
    """Write a file or folder, or another one in the folder for temporary files if that fails.

    Args:
        destination: the file or folder to make or to replace.
        write: writes the file or folder that it is given; it raises ValueError if it cannot, and
            leaves nothing then.

    Raises:
        ValueError: if it cannot be written; the message says where its content is.
    """
    try:
        write(destination)
    except ValueError as error:
        saved = Path(tempfile.mkdtemp(prefix="dgjax-")) / destination.name
        try:
            write(saved)
        except ValueError:
            saved.parent.rmdir()
            raise error from None
        raise ValueError(f"{error}; what was computed is in {saved}") from error


def write_json(file: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON, in which numbers that are not finite are null.

    Raises:
        ValueError: if the file cannot be written. The old content stays.
    """
    replace_file(file, lambda stream: stream.write((as_json(value) + "\n").encode()))


def as_json(value: Any) -> str:
    """Return indented JSON text for plain values and NumPy arrays.

    JSON has no words for NaN and infinity: both become null.
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False)


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


@contextmanager
def _explain(destination: Path) -> Iterator[None]:
    """Turn an OSError into a ValueError that names the destination and the fix."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write to {destination}: {error.strerror or error}; make room there, make it "
            "writable, or choose another place"
        ) from error


def _target(destination: Path, kind: str, is_kind: Callable[[Path], bool]) -> Path:
    """Return where a destination leads: links are followed, and anything but `kind` is refused."""
    if destination.is_symlink():
        destination = Path(os.path.realpath(destination))
    if os.path.lexists(destination) and not is_kind(destination):
        raise ValueError(
            f"cannot write to {destination}: it is there and is no {kind}; choose another place"
        )
    return destination


def _partial(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.{uuid4().hex}.partial")


def _remove_partials(destination: Path) -> None:
    """Remove what killed processes left beside `destination`."""
    name = glob.escape(destination.name)
    # All 32 digits, so that the partial files of a destination "NAME.other" do not match.
    for path in destination.parent.glob(f".{name}.{'[0-9a-f]' * 32}.partial"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _link(source: Path, target: Path) -> None:
    """Make a second name of a file, or of all files of a folder; copy where there are no links."""

    def link(source, target, **options):
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)

    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=link)
    else:
        link(source, target)


def _sync(path: Path) -> None:
    """Flush a file, or the list of names of a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
