"""The folder of a training run: its configuration and data, its checkpoints and what they say."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from dgjax.checkpoints.arrays import first_line, from_named, to_named
from dgjax.checkpoints.checkpoint import Meta
from dgjax.checkpoints.orbax_folder import read_arrays
from dgjax.data.dataset import Dataset
from dgjax.files import write_json
from dgjax.training.closing import finishing
from dgjax.training.config import TrainConfig
from dgjax.training.step import TrainState
from dgjax.training.tables import Records

__all__ = [
    "averages_folder",
    "checkpoints",
    "claim",
    "confirm",
    "describe",
    "is_finished",
    "read_config",
    "restore",
]

CONFIG, DATA = "config.json", "data.json"
# At any depth, what only says how a run is worked out, recorded and spoken of.
CHANGEABLE = ("execution", "records", "licence")


def averages_folder(run_dir: Path) -> Path:
    """Where the snapshots of the moving averages are."""
    return run_dir / "averages"


def describe(run_dir: Path, config: TrainConfig, steps: int) -> Meta:
    """What a checkpoint says of the model after `steps`, from what `claim` noted of the data.

    The licence is the one that the configuration states, or that of a known data set.

    Raises:
        ValueError: if nothing is noted there.
    """
    try:
        data = json.loads((run_dir / DATA).read_text())
        low, high = data["data_range"]
        table, licence = config.data, config.data.licence or data["licence"]
        return Meta(
            config.model, table.dataset, (low, high), licence, steps, held_out=table.held_out
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{run_dir / DATA} is missing or damaged ({error}); run dgjax train once more, "
            "which writes it where it is missing"
        ) from error


def read_config(run_dir: Path) -> TrainConfig:
    """The configuration that the run was started with.

    Raises:
        ValueError: if `run_dir` is no run, or of another version of dgjax.
    """
    file = run_dir / CONFIG
    if not file.is_file():
        raise ValueError(f"{run_dir} is no run of dgjax train: it has no config.json")
    return TrainConfig.from_dict(json.loads(file.read_text()))


def claim(run_dir: Path, config: TrainConfig, data: Dataset) -> None:
    """Note configuration and data in the run folder, or compare them with those noted there.

    What only says how the run is worked out and recorded may change.

    Raises:
        ValueError: if they are others, or the folder cannot be used.
    """
    for note in _notes(config, data):
        _write(run_dir, note)


def confirm(run_dir: Path, config: TrainConfig, data: Dataset) -> None:
    """Compare configuration and data with those that the first host has noted, by `claim`.

    Raises:
        ValueError: if there is nothing, so that this folder is not the first host's, or they are
            others.
    """
    for note in _notes(config, data):
        if not _compare(run_dir, note):
            raise ValueError(
                f"{run_dir} on this host lacks the {note.name} that the first host has just "
                "written: it must be one folder, which all hosts share"
            )


class _Note(NamedTuple):
    """What is noted of a run in one file, and what fills in what an older version left out."""

    name: str
    what: str
    values: dict[str, Any]
    complete: Callable[[dict[str, Any]], dict[str, Any]]


def _notes(config: TrainConfig, data: Dataset) -> tuple[_Note, _Note]:
    facts = {
        "samples": len(data),
        "shape": data.shape,
        "data_range": data.data_range,
        "licence": data.licence,
        "classes": data.classes,
    }
    return _settings(config), _Note(DATA, "data", _plain(facts), lambda values: values)


def _settings(config: TrainConfig) -> _Note:
    return _Note(CONFIG, "configuration", _plain(config.to_dict()), _with_defaults)


def is_finished(run_dir: Path, config: TrainConfig) -> bool:
    """Whether the run in `run_dir` has come to its last step: what is left to do is to export.

    It notes what of the configuration may change, so only one host may ask.

    Raises:
        ValueError: if it was started with another configuration.
    """
    if not all((run_dir / name).is_file() for name in (CONFIG, DATA)):
        return False
    _write(run_dir, _settings(config))
    return max(_saved(run_dir), default=0) == config.steps


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    return TrainConfig.from_dict(values).to_dict()


def _write(run_dir: Path, note: _Note) -> None:
    """Write the note, unless one there says something else: then raise a ValueError."""
    _compare(run_dir, note)
    write_json(run_dir / note.name, note.values)


def _compare(run_dir: Path, note: _Note) -> bool:
    """Whether there is such a note; a ValueError if it says something else."""
    file, now = run_dir / note.name, note.values
    try:
        if not file.exists():
            return False
        then = _plain(note.complete(json.loads(file.read_text())))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot use the run folder {run_dir}: {error}") from error
    kept, binding = _binding(then), _binding(now)
    changed = [key for key in binding if binding[key] != kept.get(key)]
    if changed:
        key = changed[0]
        raise ValueError(
            f"the run in {run_dir} was started with another {note.what}: {key} was "
            f"{then.get(key)} and is {now[key]}; restore it, or choose another folder"
        )
    return True


def _binding(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _binding(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in CHANGEABLE
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))


@contextmanager
def checkpoints(run_dir: Path, records: Records) -> Iterator[Callable[[TrainState], None]]:
    """`save(state)`, which copies the state and writes it in the background.

    orbax renames a checkpoint into place when it is whole, and only then removes old ones. What
    is still being written is finished at the end; what a killed run left half-written is removed
    by the first host.

    Raises:
        ValueError: here, at the next `save` or at the end, if one could not be written. An error
            that ends the block comes through as it is.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=records.keep,
        keep_period=records.keep_every or None,
        cleanup_tmp_directories=True,
    )

    @contextmanager
    def explained() -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax's, from a thread, are of any of several kinds
            raise ValueError(
                f"cannot write a checkpoint to {run_dir} ({first_line(error)}); make room there "
                "and run again: it goes on from the last one that is whole"
            ) from error

    with explained():
        manager = ocp.CheckpointManager(run_dir / "checkpoints", options=options)

    def save(state: TrainState) -> None:
        with explained():
            manager.save(int(state.step), args=ocp.args.StandardSave(to_named(state)), force=True)

    def finish() -> None:
        with explained():
            try:
                manager.wait_until_finished()  # tells once what failed in the background
            finally:
                manager.close()

    with finishing(finish):
        yield save


def _saved(run_dir: Path) -> list[int]:
    """Steps of the checkpoints that are whole."""
    return [int(f.name) for f in (run_dir / "checkpoints").glob("*") if f.name.isdigit()]


def restore(run_dir: Path, shapes: TrainState) -> TrainState | None:
    """The last checkpoint's state as NumPy arrays like `shapes`, or None if there is none.

    Only reads, so it is safe beside a run that is going on: orbax gives a folder its number as
    its name when it is whole. What devices it was written by does not matter.

    Raises:
        ValueError: if it is damaged or of another configuration.
    """
    steps = _saved(run_dir)
    if not steps:
        return None
    folder = run_dir / "checkpoints" / str(max(steps))
    try:
        named = read_arrays(folder / "default")
    except ValueError as error:
        earlier = [step for step in steps if step < max(steps)]
        mend = f"to go on from step {max(earlier)}" if earlier else "to begin again"
        raise ValueError(f"{error}: here, delete {folder} {mend}") from error
    return from_named(shapes, named, f"the checkpoint {folder}")
