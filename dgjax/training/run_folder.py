"""Records of a run in its folder: the configuration it was started with, and facts of its data.

A run can only be resumed with the configuration and the data that it was started with. Keys that
change neither the model nor its training (see `CHANGEABLE`) may differ.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from dgjax.checkpoints.checkpoint import Meta
from dgjax.data.dataset import Dataset
from dgjax.files import write_json
from dgjax.training.config import TrainConfig

__all__ = [
    "check_recorded_run",
    "is_recorded",
    "lock_run",
    "model_meta",
    "read_config",
    "record_config",
    "record_run",
]

CONFIG_FILE, DATA_FILE, LOCK_FILE = "config.json", "data.json", ".lock"
# Keys at any depth of the configuration that may change when a run is resumed.
CHANGEABLE = ("execution", "records", "licence")


class _Record(NamedTuple):
    """One JSON file of the run folder.

    `with_defaults` adds to the values of a file what an earlier version of dgjax did not write.
    """

    file: str
    title: str
    values: dict[str, Any]
    with_defaults: Callable[[dict[str, Any]], dict[str, Any]]


def read_config(run_dir: Path) -> TrainConfig:
    """Return the configuration that a run was started with.

    Args:
        run_dir: the run folder.

    Raises:
        ValueError: if the folder is not a run, or of an incompatible version of dgjax.
    """
    file = run_dir / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{run_dir} is not a training run: it has no {CONFIG_FILE}")
    return TrainConfig.from_dict(json.loads(file.read_text()))


def is_recorded(run_dir: Path) -> bool:
    """Return whether a folder has the records of a run."""
    return all((run_dir / name).is_file() for name in (CONFIG_FILE, DATA_FILE))


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Hold the run folder, so that no other process trains in it meanwhile.

    A process that is killed gives the folder free.

    Args:
        run_dir: the run folder; made if missing.

    Raises:
        ValueError: if another process holds the folder, or it cannot be used.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        held = FileLock(run_dir / LOCK_FILE).acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process is training in {run_dir}: wait for it or stop it, or choose another "
            "folder"
        ) from None
    except OSError as error:
        raise ValueError(
            f"cannot write to {run_dir}: {error.strerror or error}; make it writable, or choose "
            "another folder"
        ) from error
    with held:
        yield


def record_config(run_dir: Path, config: TrainConfig) -> None:
    """Write the configuration into the run folder, after comparing it with the one there.

    Args:
        run_dir: the run folder; made if missing.
        config: of the run.

    Raises:
        ValueError: if the run was started with another configuration, or the folder cannot be used.
    """
    _write(run_dir, _config_record(config))


def record_run(run_dir: Path, config: TrainConfig, data: Dataset) -> None:
    """Write configuration and facts of the data, after comparing them with those in the folder.

    Args:
        run_dir: the run folder; made if missing.
        config: of the run.
        data: the training data.

    Raises:
        ValueError: if the run was started with others, or the folder cannot be used.
    """
    for record in (_config_record(config), _data_record(data)):
        _write(run_dir, record)


def check_recorded_run(run_dir: Path, config: TrainConfig, data: Dataset) -> None:
    """Check that the run folder has the records that the first host has just written.

    Args:
        run_dir: the run folder, as this host sees it.
        config: of the run, as this host read it.
        data: the training data, as this host read them.

    Raises:
        ValueError: if a record is missing, so that this is not the first host's folder, or differs.
    """
    for record in (_config_record(config), _data_record(data)):
        if not _compare(run_dir, record):
            raise ValueError(
                f"{run_dir} on this host lacks the {record.file} that the first host has just "
                "written: it must be one folder that all hosts share"
            )


def model_meta(run_dir: Path, config: TrainConfig, steps: int) -> Meta:
    """Build the metadata of the run's model for a checkpoint.

    The licence is that of the configuration, or else that of a known data set.

    Args:
        run_dir: the run folder, with the facts of the data that `record_run` wrote.
        config: of the run.
        steps: number of steps that the model was trained for.

    Raises:
        ValueError: if the facts of the data are missing or damaged.
    """
    try:
        facts = json.loads((run_dir / DATA_FILE).read_text())
        low, high = facts["data_range"]
        licence = config.data.licence or facts["licence"]
        return Meta(
            config.model,
            config.data.dataset,
            (low, high),
            licence,
            steps,
            held_out=config.data.held_out,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{run_dir / DATA_FILE} is missing or damaged ({error}); delete it if it is "
            "damaged, and resume the run, which writes it again"
        ) from error


def _config_record(config: TrainConfig) -> _Record:
    complete = lambda values: TrainConfig.from_dict(values).to_dict()
    return _Record(CONFIG_FILE, "configuration", _as_json_values(config.to_dict()), complete)


def _data_record(data: Dataset) -> _Record:
    facts = {
        "samples": len(data),
        "shape": data.shape,
        "data_range": data.data_range,
        "licence": data.licence,
        "classes": data.classes,
    }
    return _Record(DATA_FILE, "data", _as_json_values(facts), lambda values: values)


def _write(run_dir: Path, record: _Record) -> None:
    """Write a record; raise if the folder has one that differs."""
    _compare(run_dir, record)
    write_json(run_dir / record.file, record.values)


def _compare(run_dir: Path, record: _Record) -> bool:
    """Return whether the folder has this record; raise if the one there differs."""
    file, now = run_dir / record.file, record.values
    try:
        if not file.exists():
            return False
        then = _as_json_values(record.with_defaults(json.loads(file.read_text())))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot use the run folder {run_dir}: {error}") from error
    fixed_then, fixed_now = _without_changeable(then), _without_changeable(now)
    changed = [key for key in fixed_now if fixed_now[key] != fixed_then.get(key)]
    if changed:
        key = changed[0]
        raise ValueError(
            f"the run in {run_dir} was started with another {record.title}: {key} was "
            f"{then.get(key)} and is {now[key]}; restore it, or choose another folder"
        )
    return True


def _without_changeable(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_changeable(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in CHANGEABLE
    }


def _as_json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as JSON gives them back: tuples become lists."""
    return json.loads(json.dumps(values))
