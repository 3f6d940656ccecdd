"""The folder of a training run: its configuration, its checkpoints and what they say of it."""

import json
import os
from pathlib import Path

import orbax.checkpoint as ocp

from dgjax.checkpoint import Meta, from_named, read_arrays, to_named
from dgjax.training.config import TrainConfig
from dgjax.training.data import Dataset
from dgjax.training.step import TrainState

__all__ = ["averages_folder", "claim", "describe", "manager", "read_config", "restore", "save"]


def averages_folder(run_dir: Path) -> Path:
    """Where the snapshots of the moving averages are."""
    return run_dir / "averages"


def describe(config: TrainConfig, data: Dataset, steps: int) -> Meta:
    """What a checkpoint says of the model after `steps`."""
    return Meta(config.model, config.data.dataset, data.data_range, data.licence, steps)


def read_config(run_dir: Path) -> TrainConfig:
    """The configuration that the run was started with.

    Raises:
        ValueError: if `run_dir` is no run, or of another version of dgjax.
    """
    file = run_dir / "config.json"
    if not file.is_file():
        raise ValueError(f"{run_dir} is no run of dgjax train: it has no config.json")
    return TrainConfig.from_dict(json.loads(file.read_text()))


def claim(run_dir: Path, config: TrainConfig) -> None:
    """Note the configuration in the run folder, or compare it with the one noted there.

    Raises:
        ValueError: if it is another one, or the folder cannot be used.
    """
    file = run_dir / "config.json"
    now = json.loads(json.dumps(config.to_dict()))
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            partial = run_dir / ".config.json"
            partial.write_text(json.dumps(now, indent=2) + "\n")
            os.replace(partial, file)
        then = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot use the run folder {run_dir}: {error}") from error
    if changed := [name for name in now if now[name] != then.get(name)]:
        name = changed[0]
        raise ValueError(
            f"the run in {run_dir} was started with another configuration: {name} was "
            f"{then.get(name)} and is {now[name]}; restore it, or choose another folder"
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
