"""Print an error as one line on standard error, and return the exit status that goes with it."""

import errno
import sys
from typing import Any

from dgjax.messages import place_in_own_code, printable

__all__ = ["explain"]

WRONG, USAGE, STOPPED = 1, 2, 130  # exit statuses, as shells have them


def explain(error: Exception) -> int:
    """Print what a user can do about an error; raise it again if it is none of theirs.

    Args:
        error: what a command raised.

    Returns:
        The exit status.
    """
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        return USAGE
    # Older releases of typer have the classes of click, newer ones have their own.
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        named = [word for word in sys.argv[1:2] if not word.startswith("-")]
        command = context.command_path if context else " ".join(["dgjax", *named])
        _suggest_longer_options(error, context)
        # pydantic, with which typer checks choices, puts the kind of its error first.
        text = error.format_message().replace("Value error, ", "")
        if "extra argument" in text:
            text += ": an option takes one value, repeat it for more, as in --q 0.2 --q 0.8"
        _print(f"{text} (see {command} --help)")
        return getattr(error, "exit_code", USAGE)
    if kind == "Abort":  # Ctrl-C
        _print("stopped")
        return STOPPED
    if isinstance(error, ValueError):
        # Some errors bring code that the user can run, such as to convert a file.
        code = getattr(error, "code", None)
        lines = str(error).splitlines() or ["bad value"]
        text = lines[0] if code else " ".join(line.strip() for line in lines)
        place = place_in_own_code(error)
        _print(f"{place}: {text}" if place else text)
        if code:
            print(printable(code, lines=True), file=sys.stderr)
        return WRONG
    if isinstance(error, OSError):
        if error.errno == errno.EPIPE:  # the reader of a pipe has gone, as `| head` does
            return WRONG
        at = f": {error.filename}" if error.filename else ""
        _print(f"{error.strerror or error}{at}")
        return WRONG
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)[:1000]:
        _print(
            "not enough memory: take a smaller batch (--batch, or batch in a training "
            "configuration), or fewer samples at once"
        )
        return WRONG
    raise error


def _suggest_longer_options(error: Any, context: Any) -> None:
    """Suggest the options that begin with the name of an option that does not exist."""
    name = getattr(error, "option_name", None)
    if name and context and hasattr(error, "possibilities"):
        begin = f"--{name.lstrip('-')}"
        options = (option for known in context.command.params for option in known.opts)
        longer = sorted(option for option in options if option.startswith(begin))
        error.possibilities = longer or error.possibilities


def _print(text: str) -> None:
    print(f"dgjax: {printable(text)}", file=sys.stderr)
