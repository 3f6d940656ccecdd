"""What the commands share: loading a model, choosing a solver, folders, tables."""

import difflib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from dgjax.checkpoint import PIXELS, Meta, load, load_autoencoder
from dgjax.cli.placement import placement
from dgjax.colouring import Coloured
from dgjax.divergence import Divergence, Hutchinson
from dgjax.fields import Field, condition, repath
from dgjax.paths import edm
from dgjax.pretrained import load_pretrained, pretrained_models
from dgjax.solvers import SOLVERS, Multistep, Solver
from dgjax.spec import Autoencoder, build_autoencoder, unknown_name

__all__ = [
    "BATCH",
    "CLASS",
    "JSON",
    "MODEL",
    "OUT",
    "PROBES",
    "PROBES_HELP",
    "SEED",
    "SOLVER",
    "SOLVER_HELP",
    "STEPS",
    "Model",
    "density_title",
    "find_label",
    "is_shipped",
    "make_probes",
    "make_solver",
    "of_class",
    "open_model",
    "output_folder",
    "table",
    "write_json",
]

MODEL = Annotated[
    str, typer.Option(help="Name of a shipped model, or a checkpoint folder (./NAME if both).")
]
STEPS = Annotated[int, typer.Option(min=1, help="Solver steps, uniform in log-SNR.")]
SOLVER_HELP = f"One of {', '.join(SOLVERS)}."
SOLVER = Annotated[str, typer.Option(help=SOLVER_HELP)]
BATCH = Annotated[
    int, typer.Option(min=1, help="Samples to a compiled call, of all devices together.")
]
PROBES_HELP = "Hutchinson probes per step; with multistep one to each colour of the pixels."
PROBES = Annotated[int, typer.Option(min=1, help=PROBES_HELP)]
CLASS = Annotated[
    str | None,
    typer.Option(
        "--class", help="Condition on this class, by number or name, if the model takes labels."
    ),
]
SEED = Annotated[int, typer.Option(help="Everything random follows from it.")]
OUT = Annotated[Path, typer.Option(help="Folder for the results; made if there is none.")]
JSON = Annotated[bool, typer.Option("--json", help="Print the summary as JSON, not as a table.")]

console = Console(stderr=True)


class Model(NamedTuple):
    """A loaded model in sampling coordinates, and what its checkpoint says of it.

    With a `label` the field is that of the conditional density, and every log-density is of it.
    """

    field: Field
    meta: Meta
    name: str
    autoencoder: Autoencoder
    label: int | None = None

    @property
    def size(self) -> int:
        """Number of elements D of one sample."""
        return int(np.prod(self.meta.shape))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of a sample as a picture."""
        return self.autoencoder.image_shape

    def facts(self) -> dict[str, Any]:
        """What every summary says of the model; noise levels as sigma/alpha."""
        path = self.field.path
        ends = (self.field.t_min, self.field.t_max)
        # To the digits that float32 keeps through the change of clock.
        ratio = [float(f"{path.sigma(t) / path.alpha(t):.6g}") for t in ends]
        return {
            "model": self.name,
            "source": self.meta.source or None,  # of an imported one
            "shape": list(self.meta.shape),
            "latent": self.meta.latent,
            "class": self.label,
            "t_min": ratio[0],
            "t_max": ratio[1],
        }


def open_model(name: str) -> Model:
    """The model by name or folder, on EDM coordinates with the clock sigma^(1/7).

    One in a folder is cut over the devices here if it is too large for one, as by `placement`.

    Raises:
        ValueError: if there is no such model or it cannot be read.
    """
    shipped = is_shipped("model", name, pretrained_models())
    folder = not shipped and (os.sep in name or Path(name).is_dir())
    field, meta = load(name, placement(name)) if folder else load_pretrained(name)
    # Those that are shipped are of pixels.
    autoencoder = load_autoencoder(name) if folder else build_autoencoder(PIXELS, meta.shape)
    return Model(repath(field, edm(7.0)), meta, name, autoencoder)


def density_title(facts: Mapping[str, Any]) -> str:
    """Which log-density it is that a summary with these `facts` of its model gives."""
    what = "log p" if facts["class"] is None else f"log p(x | class {facts['class']})"
    of = " of the latent" if facts["latent"] else ""
    return f"{what}{of} at t_min = {facts['t_min']:g}"


def is_shipped(what: str, name: str, names: Iterable[str]) -> bool:
    """Whether `name` is one of the `names` that come with dgjax.

    These win over a file or folder of that name here, which is meant if it is written as a path:
    it says so.
    """
    if name not in names:
        return False
    if Path(name).exists():
        note = f"taking the {what} {name} that comes with dgjax; for the one here write ./{name}"
        console.print(note, style="yellow", markup=False)
    return True


def of_class(chosen: Model, name: str | None) -> Model:
    """`chosen` given the class `name`, as of `find_label`; as it is without one."""
    label = find_label(chosen, name)
    return chosen._replace(field=condition(chosen.field, label), label=label)


def find_label(chosen: Model, name: str | None) -> int | None:
    """The label that `name` stands for, its number or one of its names; None for no class.

    Raises:
        ValueError: if `chosen` takes no labels, or not this one.
    """
    if name is None:
        return None
    classes = chosen.meta.model.network.get("num_classes")
    if classes is None:
        raise ValueError(
            f"the model {chosen.name} takes no class labels: leave --class out, or choose a model "
            "trained with num_classes"
        )
    try:
        label = int(name)
    except ValueError:
        return _named_label(chosen, name)
    if not 0 <= label < classes:
        raise ValueError(
            f"class {label} is out of range: the model {chosen.name} takes 0 to {classes - 1}"
        )
    return label


def _named_label(chosen: Model, name: str) -> int:
    found = {
        word.strip().lower(): label
        for label, words in enumerate(chosen.meta.labels)
        for word in words.split(",")
    }
    if name.strip().lower() not in found:
        near = difflib.get_close_matches(name.lower(), found, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"the model {chosen.name} knows no class called {name!r}{hint}")
    return found[name.strip().lower()]


def make_solver(name: str) -> Any:
    """A solver by its name.

    Raises:
        ValueError: if there is no such solver.
    """
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    return SOLVERS[name]()


def make_probes(count: int, solver: Solver, size: int) -> Divergence:
    """`count` probes a step: by colours, the best of them, where one estimate has a standard error.

    `Multistep` gives it, from the scatter of the steps; other solvers need independent estimates.
    Of `size` elements there are no more colours than that.
    """
    return Coloured(min(count, size)) if isinstance(solver, Multistep) else Hutchinson(count)


@contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move to `folder` only when everything has been written.

    Raises:
        ValueError: at once, if `folder` cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix=".dgjax-")
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from error
    with temporary as name:
        yield Path(name)
        try:
            for file in sorted(Path(name).iterdir()):
                os.replace(file, folder / file.name)
        except OSError as error:
            raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from error


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on standard output."""
    shown = Table(title=title, title_justify="left", header_style="bold")
    for i, name in enumerate(header):
        words = any(row[i][:1].isalpha() for row in rows)
        shown.add_column(name, justify="left" if words else "right")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


def write_json(file: Path, summary: dict[str, Any]) -> None:
    """`summary` as indented JSON; numbers that are not finite become null."""
    file.write_text(as_json(summary) + "\n")


def as_json(summary: Any) -> str:
    """JSON text in which numbers that are not finite are null."""
    return json.dumps(_plain(summary), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
