"""Files and folders are replaced as a whole, whatever stops the writer."""

import errno
import json
import os
import signal
import stat
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

from dgjax import files
from dgjax.files import (
    as_json,
    check_output_file,
    output_folder,
    replace_file,
    replace_folder,
    write_json,
)

PARTIAL = f".{{}}.{'0' * 32}.partial"


def write(text):
    return lambda stream: stream.write(text.encode())


def full(stream):
    stream.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.txt")}


@pytest.fixture
def synced(monkeypatch):
    """Inodes of what has been flushed to the disk when each rename happens."""
    flushed, renames = set(), []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def note(descriptor):
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def noted(move, source, target, **options):
        inode = os.stat(source).st_ino
        renames.append((os.path.basename(target), inode in flushed))
        move(source, target, **options)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", partial(noted, replace))
    monkeypatch.setattr(os, "rename", partial(noted, rename))
    return flushed, renames


def test_a_file_is_replaced_and_its_folder_made(tmp_path):
    file = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        replace_file(file, write(text))
        assert file.read_text() == text
        assert names(file.parent) == ["a.txt"]
    file.with_name("plain").touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(
        (tmp_path / "new/plain").stat().st_mode
    )


@pytest.mark.parametrize("error", [OSError, KeyError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    def fail(stream):
        stream.write(b"half")
        raise error("stopped")

    replace_file(tmp_path / "a", write("old"))
    with pytest.raises(ValueError if error is OSError else error, match="stopped"):
        replace_file(tmp_path / "a", fail)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_disk_errors_are_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "a"

    def in_folder(manager, path):
        with manager(path) as folder:
            (folder / "a.txt").write_text("new")

    def fails_inside(manager, path):
        with manager(path) as folder, (folder / "a.txt").open("wb") as stream:
            full(stream)

    cases = [
        (lambda: replace_file(tmp_path / "a", full), tmp_path / "a", "No space left"),
        (lambda: replace_file(inside, write("new")), inside, ""),
        (lambda: write_json(inside, {}), inside, ""),
        (lambda: in_folder(replace_folder, inside), inside, ""),
        (lambda: in_folder(output_folder, inside), inside, ""),
        (lambda: fails_inside(replace_folder, tmp_path / "b"), tmp_path / "b", "No space left"),
    ]
    for call, path, reason in cases:
        with pytest.raises(
            ValueError, match=rf"cannot write to {path}: .*{reason}.*make room"
        ) as e:
            call()
        assert "\n" not in str(e.value)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["a", "a.b", "[a]*"])
def test_what_killed_writers_left_is_removed_and_other_files_are_not(tmp_path, name):
    others = [f"{name}.c", PARTIAL.format(f"{name}.c"), f".{name}.notes.partial", "b"]
    for other in (*others, PARTIAL.format(name)):
        (tmp_path / other).touch()
    replace_file(tmp_path / name, write("new"))
    assert names(tmp_path) == sorted([*others, name])

    (tmp_path / PARTIAL.format("folder")).mkdir()
    (tmp_path / PARTIAL.format("folder") / "old").mkdir()
    with replace_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path) == sorted([*others, name, "folder"])


def write_text(path):
    replace_file(path, lambda stream: stream.write(b"new"))


def write_folder(path):
    with replace_folder(path) as folder:
        (folder / "file").write_text("new")


@pytest.mark.parametrize("write", [write_text, write_folder])
def test_links_are_followed(tmp_path, write):
    there, link, broken = tmp_path / "there", tmp_path / "link", tmp_path / "broken"
    write(there)
    link.symlink_to(there)
    write(link)
    assert link.is_symlink()
    broken.symlink_to(tmp_path / "missing")
    write(broken)
    assert broken.is_symlink()
    assert {p.name for p in tmp_path.iterdir()} == {"there", "link", "broken", "missing"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("write", [write_text, write_folder])
def test_what_is_no_file_or_folder_stays(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ValueError, match=r"pipe: it is there and is no"):
            write(tmp_path / name)
        with pytest.raises(ValueError, match=r"pipe: it is there and is no file"):
            check_output_file(tmp_path / name)
        with (
            pytest.raises(ValueError, match=r"pipe: it is there and is no folder"),
            output_folder(tmp_path / name),
        ):
            raise AssertionError("computed")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    other = {write_text: write_folder, write_folder: write_text}[write]
    other(tmp_path / "other")
    with pytest.raises(ValueError, match=r"other: it is there and is no"):
        write(tmp_path / "other")


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "new" / "model"
    for text in ("first", "second"):
        with replace_folder(folder) as new:
            (new / "deep").mkdir()
            (new / "deep" / f"{text}.txt").write_text(text)
            assert not (folder / "deep" / f"{text}.txt").exists()
        assert content(folder) == {f"deep/{text}.txt": text}
        assert names(folder.parent) == ["model"]
    with suppress(KeyError), replace_folder(folder) as new:
        (new / "third.txt").write_text("third")
        raise KeyError
    assert content(folder) == {"deep/second.txt": "second"}
    assert names(folder.parent) == ["model"]


def test_a_folder_that_cannot_be_renamed_comes_back(tmp_path, monkeypatch):
    rename = os.rename

    def fail(source, target, **options):
        if os.path.basename(source) == "new":
            raise OSError(errno.EIO, "input or output error")
        rename(source, target, **options)

    with replace_folder(tmp_path / "model") as new:
        (new / "a.txt").write_text("old")
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(ValueError, match="input or output error"):  # noqa: SIM117
        with replace_folder(tmp_path / "model") as new:
            (new / "a.txt").write_text("new")
    assert content(tmp_path) == {"model/a.txt": "old"}
    assert names(tmp_path) == ["model"]


def test_files_of_an_output_folder_appear_together_beside_what_is_there(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.txt", "kept.txt"):
        (out / name).write_text("old")
    with output_folder(out) as folder:
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text("new")
        assert (out / "a.txt").read_text() == "old"
    assert content(out) == {"a.txt": "new", "b.txt": "new", "kept.txt": "old"}
    assert names(out) == ["a.txt", "b.txt", "kept.txt"]
    with suppress(KeyError), output_folder(out) as folder:
        (folder / "a.txt").write_text("half")
        raise KeyError
    assert (out / "a.txt").read_text() == "new"
    assert names(out) == ["a.txt", "b.txt", "kept.txt"]


def test_everything_is_on_the_disk_before_it_is_renamed(tmp_path, synced):
    flushed, renames = synced
    replace_file(tmp_path / "a", write("new"))
    with output_folder(tmp_path / "out") as folder:
        (folder / "b").write_text("new")
    with replace_folder(tmp_path / "model") as new:
        (new / "deep").mkdir()
        (new / "deep" / "c").write_text("new")
    assert renames == [("a", True), ("b", True), ("model", True)]
    parts = ("", "a", "out", "out/b", "model", "model/deep", "model/deep/c")
    assert {(tmp_path / part).stat().st_ino for part in parts} <= flushed


KILLED = """
import os, runpy, signal, sys
from pathlib import Path

# The module alone: the package would take seconds to import.
files = runpy.run_path(sys.argv[4])

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

how, moment, place = sys.argv[1], sys.argv[2], Path(sys.argv[3])
if moment == "renaming":
    os.replace = os.rename = die
if how == "file":
    def write(stream):
        stream.write(b"half")
        stream.flush()
        if moment == "writing":
            die()
    files["replace_file"](place / "a.txt", write)
else:
    with files[how](place) as folder:
        (folder / "a.txt").write_text("half")
        if moment == "writing":
            die()
"""


@pytest.mark.parametrize("moment", ["writing", "renaming"])
@pytest.mark.parametrize("how", ["file", "replace_folder", "output_folder"])
def test_a_killed_writer_leaves_the_old_content(tmp_path, process, how, moment):
    place = tmp_path / "place"
    place.mkdir()
    (place / "a.txt").write_text("old")
    child = process(["-c", KILLED, how, moment, place, files.__file__])
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert (place / "a.txt").read_text() == "old"
    # The next writer is not disturbed, and removes what is left.
    if how == "file":
        replace_file(place / "a.txt", write("new"))
        assert names(place) == ["a.txt"]
    elif how == "replace_folder":
        with replace_folder(place) as folder:
            (folder / "a.txt").write_text("new")
        assert names(tmp_path) == ["place"]
    else:
        with output_folder(place) as folder:
            (folder / "a.txt").write_text("new")
    assert (place / "a.txt").read_text() == "new"


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
    value = {"a": np.float32([1.5, np.nan]), "b": (np.int64(2), -np.inf), "c": [True, None, "x"]}
    expected = {"a": [1.5, None], "b": [2, None], "c": [True, None, "x"]}
    assert json.loads(as_json(value)) == expected
    write_json(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_text() == as_json(value) + "\n"
