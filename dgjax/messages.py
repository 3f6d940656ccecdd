"""Texts for people: foreign text made safe for a terminal, and how to install what is missing."""

from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from traceback import walk_tb

__all__ = ["OWN_CODE", "check_installed", "install_line", "place_in_own_code", "printable"]

MOST = 1000  # characters
OWN_CODE = "own code "  # begins the names of modules that are files of the user


def printable(text: str, *, lines: bool = False) -> str:
    r"""Replace characters that control a terminal by their escapes, and shorten a very long line.

    Colours, links, cursor movements, line breaks and reversed writing become visible text, such
    as `\x1b[31m`.

    Args:
        text: any text.
        lines: whether it has several lines, whose breaks are kept.
    """
    if len(text) > MOST and not lines:
        text = f"{text[:MOST]}... ({len(text):,} characters)"
    return "".join(c if c.isprintable() or (lines and c == "\n") else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def place_in_own_code(error: BaseException) -> str:
    """Return the file and line of the user's own code at which an error arose, or nothing.

    Args:
        error: an error, with its traceback.
    """
    place = ""
    for frame, line in walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).startswith(OWN_CODE):
            place = f"{frame.f_code.co_filename}, line {line}"
    return place


def check_installed(extra: str, modules: tuple[str, ...], what: str) -> None:
    """Check that an extra's modules are there, without importing them.

    Args:
        extra: name of the extra, such as "train".
        modules: names of modules that it installs.
        what: what needs them, for the message.

    Raises:
        ValueError: if one is missing; the message says how to install them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ValueError(f"{what} needs {' and '.join(missing)}: `{install_line(extra)}`")


def install_line(extra: str) -> str:
    """Return the command that installs what an extra of dgjax stands for.

    It names the packages, so it works for a clone as for a release.

    Args:
        extra: name of the extra, such as "train".
    """
    try:
        needed = requires("dgjax") or []
    except PackageNotFoundError:  # run from its folder, without being installed
        needed = []
    wanted = f"extra=='{extra}'"
    found = []
    for line in needed:
        package, _, marker = line.partition(";")
        if wanted in marker.replace(" ", "").replace('"', "'"):
            found.append(f"'{package.strip()}'")
    return f"pip install {' '.join(found) or repr(f'.[{extra}]')}"
