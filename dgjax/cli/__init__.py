"""The command line: `dgjax COMMAND`, each of which explains itself with `--help`.

Each command is a thin layer over the library. Trouble that a user can mend is one line on
standard error and exit status 1 (2 for a misspelt option).
"""

import sys

import typer

from dgjax.cli.align import align
from dgjax.cli.cache import keep_compiled
from dgjax.cli.check import check
from dgjax.cli.edit import edit
from dgjax.cli.evaluate import evaluate
from dgjax.cli.explore import explore
from dgjax.cli.import_model import import_model
from dgjax.cli.likelihood import likelihood
from dgjax.cli.sample import sample
from dgjax.cli.train import train

__all__ = ["app", "main"]

app = typer.Typer(
    help="Sample diffusion and flow models at a log-density you choose, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (sample, edit, explore, likelihood, align, evaluate, train, check):
    app.command()(command)
app.command("import")(import_model)  # whose name Python keeps for itself


def main() -> None:
    """Entry point of the `dgjax` command."""
    keep_compiled()
    try:
        app()
    except ValueError as error:
        first, *_ = str(error).splitlines() or ["bad value"]
        print(f"dgjax: {first}", file=sys.stderr)
        sys.exit(1)
