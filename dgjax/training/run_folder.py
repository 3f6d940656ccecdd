"""Records of a run in its folder: the configuration it was started with, and facts of its data.

A run is resumed with the model and the data that it was started with. The keys in `CHANGEABLE`,
such as the length, the learning rate and the batch, may have other values; `changes.jsonl` records
them.
Data are recognized by their content, so they may be at another place.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from dgjax.checkpoints.meta import Meta
from dgjax.data.dataset import Dataset
from dgjax.files import write_json
from dgjax.training.config import TrainConfig

__all__ = [
    "check_recorded_run",
    "config_changes",
    "describe_changes",
    "is_recorded",
    "lock_run",
    "model_meta",
    "read_config",
    "record_config",
    "record_run",
    "with_recorded_start",
]

CONFIG_FILE, DATA_FILE, LOCK_FILE = "config.json", "data.json", ".lock"
CHANGES_FILE = "changes.jsonl"
# Keys, or sections, that hosts of one run may set differently.
OF_HOST = ("data.path", "data.licence", "execution", "records")
# Keys, or sections, that may change when a run is resumed.
CHANGEABLE = (*OF_HOST, "steps", "batch", "optimiser", "ema_snapshots")
# Largest difference of projections of the same data, relative to their range.
SAME_CONTENT = 0.02
LONGEST = 200  # characters of a value in a message

# Changed keys, with dots between a section and its key: the values before and now.
Changes = dict[str, tuple[Any, Any]]


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
    return TrainConfig.from_dict(_read(run_dir, CONFIG_FILE, _complete))


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
    """Return the configuration with the `init_from` that the run has, unless it states one.

    Args:
        run_dir: the run folder.
        config: of the run.

    Raises:
        ValueError: as of `read_config`.
    """
    if config.init_from is not None or not is_recorded(run_dir):
        return config
    return replace(config, init_from=read_config(run_dir).init_from)


def config_changes(
    run_dir: Path, config: TrainConfig, changeable: tuple[str, ...] = CHANGEABLE
) -> Changes:
    """Return the keys that differ from the configuration in the run folder.

    Args:
        run_dir: the run folder.
        config: of the run.
        changeable: keys, or sections, that may differ.

    Raises:
        ValueError: if another key differs, or the folder cannot be read.
    """
    now = _flat(_as_json_values(config.to_dict()))
    then = _flat(_as_json_values(_read(run_dir, CONFIG_FILE, _complete)))
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    changes = {name: (then.get(name), now.get(name)) for name in names}
    fixed = {
        name: values
        for name, values in changes.items()
        if not any(name == key or name.startswith(f"{key}.") for key in changeable)
    }
    if fixed:
        them = "it" if len(fixed) == 1 else "them"
        raise ValueError(
            f"the run in {run_dir} was started with another configuration: "
            f"{describe_changes(fixed)}; restore {them}, or choose another folder"
        )
    return changes


def record_config(run_dir: Path, config: TrainConfig, step: int) -> Changes:
    """Write the configuration into the run folder, after comparing it with the one there.

    What changed is appended to `changes.jsonl`. Nothing is written if nothing changed.

    Args:
        run_dir: the run folder; made if missing.
        config: of the run.
        step: number of steps taken.

    Returns:
        The keys that changed.

    Raises:
        ValueError: if a key differs that may not change, the run is longer than `config.steps`, or
            the folder cannot be used.
    """
    file = run_dir / CONFIG_FILE
    if not file.exists():
        write_json(file, config.to_dict())
        return {}
    changes = config_changes(run_dir, config)
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
    """Write configuration and facts of the data, after comparing them with those in the folder.

    Args:
        run_dir: the run folder; made if missing.
        config: of the run.
        data: the training data.
        step: number of steps taken.

    Returns:
        The keys of the configuration that changed.

    Raises:
        ValueError: as of `record_config`, or if the run was started with other data.
    """
    if (run_dir / CONFIG_FILE).exists():
        config_changes(run_dir, config)  # raises before the data are compared
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
    config_changes(run_dir, config, OF_HOST)
    _check_same_data(run_dir, data)


def describe_changes(changes: Changes) -> str:
    """Say in one line which keys changed."""
    return ", ".join(_describe(name, *values) for name, values in changes.items())


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


def _describe(name: str, then: Any, now: Any) -> str:
    if max(len(str(then)), len(str(now))) > LONGEST:
        return f"{name} differs"
    then, now = ("absent" if value is None else value for value in (then, now))
    return f"{name} was {then} and is {now}"


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
    return _as_json_values(facts)


def _check_same_data(run_dir: Path, data: Dataset) -> None:
    """Raise if the folder has facts of other data than these."""
    if not (run_dir / DATA_FILE).exists():
        return
    then, now = _read(run_dir, DATA_FILE), _data_facts(data)
    for name in now:
        if name in ("licence", "projections") or name not in then:  # earlier versions wrote fewer
            continue
        if name == "classes" and then[name] is None:  # names may come later, labels are compared
            continue
        if then[name] != now[name]:
            what = _describe(name, then[name], now[name])
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


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    """Add to a configuration what an earlier version of dgjax did not write."""
    return TrainConfig.from_dict(values).to_dict()


def _read(
    run_dir: Path, name: str, complete: Callable[[Any], dict[str, Any]] = dict
) -> dict[str, Any]:
    try:
        return complete(json.loads((run_dir / name).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"cannot use the run folder {run_dir}: {error}") from error


def _append(file: Path, line: str) -> None:
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror or error}") from error


def _flat(values: dict[str, Any], section: str = "") -> dict[str, Any]:
    """Return all keys with their sections before them, separated by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{section}{key}"
        nested = isinstance(value, dict) and value  # an empty section is a value of its own
        flat |= _flat(value, f"{name}.") if nested else {name: value}
    return flat


def _as_json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as JSON gives them back: tuples become lists."""
    return json.loads(json.dumps(values))
