"""The command line `dgjax COMMAND`; every command explains itself with `--help`.

Each module here is named after its command and holds one function `command`, a thin layer over
the library. Errors that a user can fix are one line on standard error with exit status 1; a wrong
option has exit status 2.
"""

import sys

import typer

from dgjax.cli import (
    align,
    check,
    edit,
    evaluate,
    explore,
    import_model,
    likelihood,
    sample,
    train,
)
from dgjax.cli.cache import enable_compilation_cache

__all__ = ["app", "main"]

app = typer.Typer(
    help="Sample diffusion and flow models at a log-density you choose, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("sample")(sample.command)
app.command("edit")(edit.command)
app.command("explore")(explore.command)
app.command("likelihood")(likelihood.command)
app.command("align")(align.command)
app.command("evaluate")(evaluate.command)
app.command("train")(train.command)
app.command("check")(check.command)
app.command("import")(import_model.command)


def main() -> None:
    """Run the `dgjax` command."""
    enable_compilation_cache()
    try:
        app()
    except ValueError as error:
        first, *_ = str(error).splitlines() or ["bad value"]
        print(f"dgjax: {first}", file=sys.stderr)
        sys.exit(1)
