"""Cleanup at the end of a block that does not hide the error that ended the block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["on_exit"]


@contextmanager
def on_exit(finish: Callable[[], None]) -> Iterator[None]:
    """Call `finish` when the block ends, with or without an error.

    An error of the block is raised unchanged. If `finish` raises too, its message becomes a note on
    that error.

    Args:
        finish: the cleanup, such as closing a file.
    """
    try:
        yield
    except BaseException as error:
        try:
            finish()
        except Exception as later:
            error.add_note(f"and then: {later}")
        raise
    finish()
