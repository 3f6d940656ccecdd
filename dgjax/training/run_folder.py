"""Records of a run in its folder: the configuration it was started with, and facts of its data.

A run is resumed with the model and the data that it was started with. The keys in `CHANGEABLE`,
such as the length, the learning rate and the batch, may have other values; `changes.jsonl` records
them. As long as nothing of its training is saved, a run may start again with any configuration and
any data.
Data are recognized by their content, so they may be at another place.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from dgjax.checkpoints.meta import Meta
from dgjax.data.dataset import Dataset
from dgjax.files import write_json
from dgjax.training.config import TrainConfig
from dgjax.training.config_changes import (
    CHANGEABLE,
    OF_HOST,
    Changes,
    as_json_values,
    changes_between,
    describe_change,
    describe_changes,
    without_keys,
)

__all__ = [
    "check_recorded_run",
    "check_same_config",
    "is_recorded",
    "is_started",
    "lock_run",
    "model_meta",
    "read_config",
    "record_config",
    "record_run",
    "with_recorded_start",
]

CONFIG_FILE, DATA_FILE, LOCK_FILE = "config.json", "data.json", ".lock"
CHANGES_FILE = "changes.jsonl"
SAVED = ("checkpoints", "averages", "samples")  # folders of what training writes
T = TypeVar("T")
# Largest difference of projections of the same data, relative to their range.
SAME_CONTENT = 0.02


def read_config(run_dir: Path) -> TrainConfig:
    """Return the configuration that a run was started with.

    Args:
        run_dir: the run folder.

    Raises:
        ValueError: if the folder is not a run, damaged, or of an incompatible version of dgjax.
    """
    file = run_dir / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{run_dir} is not a training run: it has no {CONFIG_FILE}")
    return _read(run_dir, CONFIG_FILE, TrainConfig.from_dict)


def is_recorded(run_dir: Path) -> bool:
    """Return whether a folder has the records of a run."""
    return all((run_dir / name).is_file() for name in (CONFIG_FILE, DATA_FILE))


def is_started(run_dir: Path) -> bool:
    """Return whether anything of a run's training is saved: checkpoint, average or picture."""
    return any(any((run_dir / name).glob("*")) for name in SAVED)


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Hold the run folder, so that no other process trains in it meanwhile.

    A process that is killed gives the folder free.

    Args:
        run_dir: the run folder; made if missing.

    Raises:
        ValueError: if another process holds the folder, or it cannot be used.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(
            f"cannot write to {run_dir}: it is there and is no folder; choose another place"
        )
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


def with_recorded_start(run_dir: Path, config: TrainConfig) -> TrainConfig:
    """Return the configuration with the `init_from` of a started run, unless it states one.

    Args:
        run_dir: the run folder.
        config: of the run.

    Raises:
        ValueError: as of `read_config`.
    """
    if config.init_from is not None or not (is_recorded(run_dir) and is_started(run_dir)):
        return config
    return replace(config, init_from=read_config(run_dir).init_from)


def check_same_config(
    run_dir: Path, config: TrainConfig, changeable: tuple[str, ...] = CHANGEABLE
) -> None:
    """Check that a configuration differs from the recorded one in changeable keys only.

    Args:
        run_dir: the run folder.
        config: of the run.
        changeable: keys, or sections, that may differ.

    Raises:
        ValueError: if another key differs, or the folder cannot be read.
    """
    fixed = without_keys(changes_between(read_config(run_dir), config), changeable)
    if fixed:
        them = "it" if len(fixed) == 1 else "them"
        raise ValueError(
            f"the run in {run_dir} was started with another configuration: "
            f"{describe_changes(fixed)}; restore {them}, or choose another folder"
        )


def record_config(run_dir: Path, config: TrainConfig, step: int) -> Changes:
    """Write the configuration into the run folder.

    What changed is appended to `changes.jsonl`. Nothing is written if nothing changed.

    Args:
        run_dir: the run folder; made if missing.
        config: of the run.
        step: number of steps taken.

    Returns:
        The keys that changed.

    Raises:
        ValueError: if the run is longer than `config.steps`, or the folder cannot be used.
    """
    file = run_dir / CONFIG_FILE
    if not file.exists():
        write_json(file, config.to_dict())
        return {}
    changes = changes_between(read_config(run_dir), config)
    if config.steps < step:
        raise ValueError(
            f"the run in {run_dir} is at step {step} and steps is {config.steps}: set steps to "
            f"{step} or more, or choose another folder"
        )
    if changes:
        line = {"step": step, "changed": changes, "time": round(time.time(), 3)}
        _append(run_dir / CHANGES_FILE, json.dumps(line))
        write_json(file, config.to_dict())
    return changes


def record_run(run_dir: Path, config: TrainConfig, data: Dataset, step: int) -> Changes:
    """Write configuration and facts of the data.

    Those of a started run are compared with the ones in the folder first.

    Args:
        run_dir: the run folder; made if missing.
        config: of the run.
        data: the training data.
        step: number of steps taken.

    Returns:
        The keys of the configuration that changed.

    Raises:
        ValueError: as of `record_config`, or if the run was started with other data, or with
            another value of a key that may not change.
    """
    if is_started(run_dir):
        if (run_dir / CONFIG_FILE).exists():
            check_same_config(run_dir, config)
        _check_same_data(run_dir, data)
    changes = record_config(run_dir, config, step)
    write_json(run_dir / DATA_FILE, _data_facts(data))
    return changes


def check_recorded_run(run_dir: Path, config: TrainConfig, data: Dataset) -> None:
    """Check that the run folder has the records that the first host has just written.

    Args:
        run_dir: the run folder, as this host sees it.
        config: of the run, as this host read it.
        data: the training data, as this host read them.

    Raises:
        ValueError: if a record is missing, so that this is not the first host's folder, or differs.
    """
    for name in (CONFIG_FILE, DATA_FILE):
        if not (run_dir / name).exists():
            raise ValueError(
                f"{run_dir} on this host lacks the {name} that the first host has just "
                "written: it must be one folder that all hosts share"
            )
    check_same_config(run_dir, config, OF_HOST)
    _check_same_data(run_dir, data)


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
            labels=_class_names(config, facts.get("classes")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{run_dir / DATA_FILE} is missing or damaged ({error}); delete it if it is "
            "damaged, and resume the run, which writes it again"
        ) from error


def _class_names(config: TrainConfig, classes: list[str] | None) -> tuple[str, ...]:
    """Return the names of the classes that the network was given, if they have names."""
    given = len(classes or ()) == config.model.network.get("num_classes")
    return tuple(classes or ()) if given else ()


def _data_facts(data: Dataset) -> dict[str, Any]:
    facts = {
        "samples": len(data),
        "shape": data.shape,
        "data_range": data.data_range,
        "licence": data.licence,
        "classes": data.classes,
        **data.content(),
    }
    return as_json_values(facts)


def _check_same_data(run_dir: Path, data: Dataset) -> None:
    """Raise if the folder has facts of other data than these."""
    if not (run_dir / DATA_FILE).exists():
        return
    then, now = _read(run_dir, DATA_FILE, dict), _data_facts(data)
    for name in now:
        if name in ("licence", "projections") or name not in then:  # earlier versions wrote fewer
            continue
        if name == "classes" and then[name] is None:  # names may come later, labels are compared
            continue
        if then[name] != now[name]:
            what = describe_change(name, then[name], now[name])
            break
    else:
        low, high = data.data_range
        apart = np.subtract(then.get("projections", now["projections"]), now["projections"])
        if np.abs(apart).max() <= SAME_CONTENT * (high - low):
            return
        what = "their number and shape are the same, and their values differ"
    raise ValueError(
        f"the run in {run_dir} was started with other data: {what}; set data.path to the data it "
        "was started with, or choose another folder"
    )


def _read(run_dir: Path, name: str, parse: Callable[[Any], T]) -> T:
    try:
        return parse(json.loads((run_dir / name).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"cannot use the run folder {run_dir}: {error}") from error


def _append(file: Path, line: str) -> None:
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror or error}") from error
