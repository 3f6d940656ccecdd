"""The folder of a training run: its configuration and data, its checkpoints and what they say."""

import json
import os
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from dgjax.checkpoint import Meta, from_named, read_arrays, to_named
from dgjax.training.config import TrainConfig
from dgjax.training.dataset import Dataset
from dgjax.training.step import TrainState

__all__ = ["averages_folder", "claim", "describe", "manager", "read_config", "restore", "save"]

CONFIG, DATA = "config.json", "data.json"
# Keys that are younger than some runs, and what those runs had.
ADDED = {"label_dropout": 0.0}


def averages_folder(run_dir: Path) -> Path:
    """Where the snapshots of the moving averages are."""
    return run_dir / "averages"


def describe(run_dir: Path, config: TrainConfig, steps: int) -> Meta:
    """What a checkpoint says of the model after `steps`, from what `claim` noted of the data.

    Raises:
        ValueError: if nothing is noted there.
    """
    try:
        data = json.loads((run_dir / DATA).read_text())
        low, high = data["data_range"]
        return Meta(config.model, config.data.dataset, (low, high), data["licence"], steps)
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

    Raises:
        ValueError: if they are others, or the folder cannot be used.
    """
    facts = {
        "samples": len(data),
        "shape": data.shape,
        "data_range": data.data_range,
        "licence": data.licence,
        "classes": data.classes,
    }
    _agree(run_dir, CONFIG, "configuration", config.to_dict())
    _agree(run_dir, DATA, "data", facts)


def _agree(run_dir: Path, name: str, what: str, values: dict[str, Any]) -> None:
    file = run_dir / name
    now = json.loads(json.dumps(values))
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            partial = run_dir / f".{name}"
            partial.write_text(json.dumps(now, indent=2) + "\n")
            os.replace(partial, file)
        then = ADDED | json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot use the run folder {run_dir}: {error}") from error
    if changed := [key for key in now if now[key] != then.get(key)]:
        key = changed[0]
        raise ValueError(
            f"the run in {run_dir} was started with another {what}: {key} was "
            f"{then.get(key)} and is {now[key]}; restore it, or choose another folder"
        )


def manager(run_dir: Path) -> ocp.CheckpointManager:
    """Of the run's checkpoints; the last two are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager(run_dir / "checkpoints", options=options)


def save(checkpoints: ocp.CheckpointManager, state: TrainState) -> None:
    """Write a checkpoint; orbax renames it into place when it is whole."""
    checkpoints.save(int(state.step), args=ocp.args.StandardSave(to_named(state)), force=True)


def restore(run_dir: Path, state: TrainState) -> TrainState:
    """The last checkpoint's state, or `state` if there is none.

    Only reads, so it is safe beside a run that is going on: orbax gives a folder its number as
    its name when it is whole.

    Raises:
        ValueError: if it is damaged or of another configuration.
    """
    steps = [int(f.name) for f in (run_dir / "checkpoints").glob("*") if f.name.isdigit()]
    if not steps:
        return state
    folder = run_dir / "checkpoints" / str(max(steps)) / "default"
    named = read_arrays(folder)
    return from_named(state, named, f"the checkpoint {folder}")
