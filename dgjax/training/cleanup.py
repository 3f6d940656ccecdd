"""Finishing what was begun, without hiding what went wrong in between."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["finishing"]


@contextmanager
def finishing(finish: Callable[[], None]) -> Iterator[None]:
    """Call `finish` at the end of the block, however it ends.

    An error of the block comes through; if `finish` raises as well, it is noted there.
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
