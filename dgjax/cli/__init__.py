"""The command line `dgjax COMMAND`; every command explains itself with `--help`.

Each command has a module here, which holds one function `command`: a thin layer over the library.
It is imported when the command runs, so that help and completion do not wait for JAX. Errors that
a user can fix are one line on standard error with exit status 1; a wrong option has exit status 2.
"""

import difflib
import importlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from dgjax._version import __version__
from dgjax.cli.explain import explain

__all__ = ["COMMANDS", "app", "main"]


WINDOWS = ("--noise-window", "--guidance-window")


class Command(NamedTuple):
    """The module of a command, and the first line of its help."""

    module: str
    help: str


COMMANDS = {
    "sample": Command("sample", "Draw samples from the same latents at several log-densities."),
    "edit": Command("edit", "Encode a picture to its latent and decode it at other log-densities."),
    "explore": Command(
        "explore", "Write an HTML page in which q can be changed and samples compared."
    ),
    "likelihood": Command(
        "likelihood",
        "Compute log-density (nats) and bits per dimension of data, by the probability-flow ODE.",
    ),
    "align": Command(
        "align",
        "Measure score alignment: the share of latents with <score, pushed prior score> > 0.",
    ),
    "evaluate": Command(
        "evaluate",
        "Measure a model: bits/dim, distance of samples from data, alignment, consistency.",
    ),
    "train": Command(
        "train",
        "Train a model on all devices. To continue a stopped run, run the same command again.",
    ),
    "distil": Command(
        "distil", "Train a head that predicts a model's divergence, for --divergence distilled."
    ),
    "check": Command(
        "check", "Compare the library with closed forms on the device of this machine."
    ),
    "import": Command(
        "import_model",
        "Make a checkpoint of a model that another library trained, for all other commands.",
    ),
}


class _Commands(TyperGroup):
    """Commands whose modules are imported when they run."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, cmd_name):
        found = COMMANDS.get(cmd_name)
        return None if found is None else TyperCommand(cmd_name, help=found.help)

    def resolve_command(self, ctx, args):
        try:
            name, _, rest = super().resolve_command(ctx, args)
        except Exception as error:  # the class differs between releases of typer
            near = difflib.get_close_matches(args[0], COMMANDS, n=1) if args else []
            if near and hasattr(error, "message"):
                error.message = f"No such command {args[0]!r}, did you mean {near[0]!r}?"
            raise
        return name, None if name is None else _load(name), list(_split_windows(rest))


def _split_windows(arguments: list[str]) -> Iterator[str]:
    """Yield arguments, with `--noise-window LOW,HIGH` as the two numbers for the parser."""
    before = ""
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option in WINDOWS and value.count(",") == 1:
            yield from (option, *value.split(","))
        elif before in WINDOWS and argument.count(",") == 1:
            yield from argument.split(",")
        else:
            yield argument
        before = argument


def _load(name: str) -> Any:
    """Import a command."""
    module = importlib.import_module(f"dgjax.cli.{COMMANDS[name].module}")
    from dgjax.cli.cache import enable_compilation_cache  # imports JAX, as commands do

    enable_compilation_cache()
    alone = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    alone.command(name)(module.command)
    return typer.main.get_command(alone)


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dgjax {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Sample diffusion and flow models at a log-density you choose, and measure it."""


def main() -> None:
    """Run the `dgjax` command."""
    try:
        status = app(standalone_mode=False)
    except Exception as error:
        status = explain(error)
    sys.exit(status if isinstance(status, int) else 0)
