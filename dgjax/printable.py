"""Text from users, model folders and the web, made safe to print in a terminal."""

__all__ = ["printable"]

MOST = 1000  # characters


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
