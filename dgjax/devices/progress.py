"""Show progress on standard error: a bar with the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dgjax.messages import printable

__all__ = ["Show", "console", "progress", "say"]

Show = Callable[[int], None]  # advances a progress bar by a number of samples

# Square brackets and colons in names of files are text, no markup.
console = Console(stderr=True, markup=False, emoji=False, highlight=False)


def say(*lines: str, warning: bool = False) -> None:
    """Print lines on standard error, without markup; control characters are shown as escapes.

    Args:
        *lines: without line breaks, which are escaped too.
        warning: whether they are yellow.
    """
    for line in lines:
        console.print(printable(line), style="yellow" if warning else None, soft_wrap=True)


@contextmanager
def progress(what: str, total: int, done: int = 0, unit: str = "samples") -> Iterator[Show]:
    """Show a progress bar while the block runs, and remove it afterwards.

    Args:
        what: the text before the bar.
        total: number of samples, or of others that `unit` names.
        done: number of them that are done already.
        unit: what is counted, in the plural.

    Yields:
        A function that advances the bar by a number of them.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task(f"{what} (compiling)", total=total, completed=done)
        yield lambda count: bar.update(task, advance=count, description=what)
