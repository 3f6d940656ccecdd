"""Options that several commands share, and the tables that commands print."""

import os
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill, wrap
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import typer
from rich.console import Console
from rich.table import Table

from dgjax.checkpoints.conditions import Condition, Negative, condition_model, find_condition
from dgjax.checkpoints.configuration import unknown_name
from dgjax.checkpoints.opened import Model, open_model
from dgjax.checkpoints.pretrained import pretrained_models
from dgjax.devices.progress import say
from dgjax.messages import printable
from dgjax.model.field import Field
from dgjax.sampling.solvers import SOLVERS

__all__ = [
    "BATCH",
    "CLASS",
    "COND",
    "DISTILLED_GUIDANCE",
    "DTYPE",
    "HEIGHT",
    "JSON",
    "LEVELS",
    "MODEL",
    "MOST_BATCH",
    "MOST_LATENTS",
    "MOST_PROBES",
    "MOST_STEPS",
    "OUT",
    "PROBES",
    "PROBES_HELP",
    "PROMPT",
    "SEED",
    "SOLVER",
    "SOLVER_HELP",
    "STEPS",
    "WIDTH",
    "check_class",
    "choose_condition",
    "choose_conditioned",
    "choose_model",
    "make_solver",
    "note_shadowed",
    "note_unread",
    "table",
    "takes_no_condition",
]

MODEL = Annotated[
    str,
    typer.Option(
        help="Name of a shipped model, checkpoint folder (if both exist, ./NAME is the folder), or "
        "FILE.py:FUNCTION, your own code that makes a model."
    ),
]
# Beyond these limits a command would not end, or not fit any memory.
MOST_STEPS, MOST_PROBES, MOST_BATCH = 100_000, 10_000, 1_000_000
MOST_LATENTS = 10**9
STEPS = Annotated[
    int, typer.Option(min=1, max=MOST_STEPS, help="Solver steps, uniform in log-SNR.")
]
SOLVER_HELP = f"One of {', '.join(SOLVERS)}."
SOLVER = Annotated[str, typer.Option(help=SOLVER_HELP)]
BATCH = Annotated[
    int,
    typer.Option(
        min=1, max=MOST_BATCH, help="Samples in one compiled call, on all devices together."
    ),
]
PROBES_HELP = "Hutchinson probes per step; with multistep solvers, one per colour of pixels."
PROBES = Annotated[int, typer.Option(min=1, max=MOST_PROBES, help=PROBES_HELP)]
CLASS = Annotated[
    str | None,
    typer.Option(
        "--class", help="Condition on this class, by number or name.", show_default="no class"
    ),
]
PROMPT = Annotated[
    str | None,
    typer.Option(help='Condition on this text, for a model of prompts; "" is no text.'),
]
COND = Annotated[
    Path | None,
    typer.Option(
        help="Condition on the arrays in this npz file, such as embeddings of a prompt that "
        "another program made, by the names of the network's arguments.",
        show_default="none",
    ),
]
HEIGHT = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Height of the pictures in pixels, for networks whose weights allow it.",
        show_default="that of the model",
    ),
]
WIDTH = Annotated[
    int | None,
    typer.Option(min=1, help="Width of the pictures in pixels.", show_default="that of the model"),
]
DISTILLED_GUIDANCE = Annotated[
    float | None,
    typer.Option(
        help="Guidance weight that a distilled model (Flux) takes as an input, beside --prompt "
        "or --cond.",
        show_default="that of its pipeline, 3.5",
    ),
]
DTYPE = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option(
        help="Precision of the weights in memory; the last two take half of it. All arithmetic, "
        "and so the log-density, stays in float32."
    ),
]
LEVELS = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--data-range",
        help="Levels of pictures of 16 bits that are black and white: 0 4095 for 12 bits.",
        show_default="0 65535",
    ),
]
# JAX makes equal keys of numbers that are equal modulo 2^32.
SEED = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]
OUT = Annotated[Path, typer.Option(help="Folder for the results; made if it does not exist.")]
JSON = Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of a table.")]


NARROWEST = 6  # characters of a column before its header is wrapped


def note_shadowed(what: str, name: str, names: Iterable[str]) -> None:
    """Note on standard error if a name that comes with dgjax hides a file of the same name.

    Args:
        what: what `names` are called, for the message.
        name: the name that was given. Written as a path, ./NAME, it means the file.
        names: the names that come with dgjax.
    """
    if name in names and os.path.exists(name):
        note = f"taking the {what} {name} that comes with dgjax; for the one here write ./{name}"
        say(note, warning=True)


def choose_model(
    name: str, height: int | None = None, width: int | None = None, dtype: str = "float32"
) -> Model:
    """Open the model named by --model, at --height and --width and with weights of --dtype.

    Raises like `open_model`.
    """
    note_shadowed("model", name, pretrained_models())
    return open_model(name, height=height, width=width, dtype=dtype)


def choose_conditioned(
    name: str,
    class_: str | None,
    prompt: str | None = None,
    distilled: float | None = None,
    *,
    file: Path | None = None,
    size: tuple[int | None, int | None] = (None, None),
    dtype: str = "float32",
) -> Model:
    """Open the model named by --model, conditioned on --class, --prompt or --cond.

    Args:
        name: the option --model.
        class_: the option --class.
        prompt: the option --prompt.
        distilled: the option --distilled-guidance.
        file: the option --cond.
        size: the options --height and --width.
        dtype: the option --dtype.

    Raises:
        ValueError: as of `choose_model` and `choose_condition`.
    """
    chosen = choose_model(name, *size, dtype=dtype)
    given = choose_condition(chosen, class_, prompt, file=file, distilled=distilled)
    return condition_model(chosen, given)


def choose_condition(
    chosen: Model,
    class_: str | None,
    prompt: str | None,
    *,
    file: Path | None = None,
    negative: Negative | None = None,
    distilled: float | None = None,
) -> Condition:
    """Find what --class, --prompt, --cond, --negative and --distilled-guidance name.

    Args:
        chosen: the model.
        class_: the option --class.
        prompt: the option --prompt.
        file: the option --cond.
        negative: the option --negative; None without classifier-free guidance.
        distilled: the option --distilled-guidance.

    Raises:
        ValueError: as of `find_condition`; if the model needs one of the options.
    """
    if prompt is None and file is None and distilled is None:
        check_class(chosen, class_)
    found = find_condition(
        chosen, class_, prompt, file=file, negative=negative, distilled=distilled
    )
    note_unread(found)
    return found


def note_unread(found: Condition) -> None:
    """Note on standard error which part of a prompt not all text encoders read."""
    for rest in found.unread:
        say(
            "the prompt is long: T5 reads all of it and CLIP the beginning alone, as in diffusers; "
            f"what CLIP does not read begins with {rest[:40]!r}",
            warning=True,
        )


def make_solver(name: str) -> Any:
    """Make a solver by its name.

    Raises:
        ValueError: if no solver has this name.
    """
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    return SOLVERS[name]()


def check_class(chosen: Model, name: str | None) -> Model:
    """Return the model, or raise an error if it needs a condition and --class is missing.

    Raises:
        ValueError: if `name` is None and the model has no prediction without a class, or needs a
            prompt.
    """
    if name is None and chosen.meta.text:
        raise ValueError(
            f"the model {chosen.name} was trained with a prompt for every image: add --prompt "
            '(--prompt "" for no text)'
        )
    classes = chosen.meta.model.network.get("num_classes")
    if name is None and classes and not takes_no_condition(chosen.field):
        raise ValueError(
            f"the model {chosen.name} was trained with a class for every image: add --class, a "
            f"number from 0 to {classes - 1}"
        )
    return chosen


def takes_no_condition(field: Field) -> bool:
    """Return whether a model predicts without a condition: it has none, or can do without it.

    The network is traced, not evaluated. `field` knows the shape of its samples.
    """
    try:
        jax.eval_shape(lambda t, x: field.pair(t, x).eps, jnp.float32(1), jnp.zeros(field.shape))
    except ValueError:
        return False
    return True


def table(title: str, header: list[str], rows: list[list[str]], legend: str = "") -> None:
    """Print a table on standard output; columns of numbers are right-aligned.

    Headers are wrapped to the width of the cells below, so that terminals need not cut any.
    `legend` is a text below the table.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    shown = Table(title=printable(title), title_justify="left", header_style="bold")
    for i, name in enumerate(header):
        words = any(row[i][:1].isalpha() and row[i] != "unknown" for row in rows)
        width = max(map(len, (row[i] for row in rows)), default=0)
        lines = wrap(name, max(width, NARROWEST), break_long_words=False, break_on_hyphens=False)
        shown.add_column(
            "\n".join(lines), justify="left" if words else "right", overflow="fold"
        )  # nothing is cut
    for row in rows:
        shown.add_row(*row)
    Console(markup=False, emoji=False, highlight=False).print(shown)
    if legend:
        print(fill(legend, 80))
