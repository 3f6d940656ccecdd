"""Checkpoints of the whole training state, written in the background by orbax."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import orbax.checkpoint as ocp

from dgjax.checkpoints.arrays import first_line, from_named, to_named
from dgjax.checkpoints.orbax_folder import read_arrays
from dgjax.training.cleanup import on_exit
from dgjax.training.config import TrainConfig
from dgjax.training.run_folder import (
    check_same_config,
    is_recorded,
    is_started,
    read_config,
    record_config,
    with_recorded_start,
)
from dgjax.training.sections import Records
from dgjax.training.step import TrainState

__all__ = ["is_finished", "latest_step", "open_checkpoints", "restore_latest"]

FORMER_FIELDS = {"levels": "noise_sampler"}  # of `TrainState`, in checkpoints of earlier versions


@contextmanager
def open_checkpoints(run_dir: Path, records: Records) -> Iterator[Callable[[TrainState], None]]:
    """Open the checkpoints of a run for writing; at the end of the block, finish pending writes.

    orbax renames a checkpoint to its final name once it is complete, and only then removes old
    ones. The first host removes incomplete checkpoints that a killed run left.

    Args:
        run_dir: the run folder.
        records: which checkpoints to keep.

    Yields:
        The function `save(state)`. It copies the state and returns; the file is written in the
        background.

    Raises:
        ValueError: if a checkpoint cannot be written: at once, at the next `save`, or at the end.
            An error that ends the block is raised unchanged.
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
        except Exception as error:  # orbax raises many kinds of errors from its threads
            raise ValueError(
                f"cannot write a checkpoint to {run_dir} ({first_line(error)}); make room there "
                "and run again, which resumes from the last complete one"
            ) from error

    with explained():
        manager = ocp.CheckpointManager(run_dir / "checkpoints", options=options)

    def save(state: TrainState) -> None:
        with explained():
            manager.save(int(state.step), args=ocp.args.StandardSave(to_named(state)), force=True)

    def finish() -> None:
        with explained():
            try:
                manager.wait_until_finished()  # raises an error of the background once
            finally:
                manager.close()

    with on_exit(finish):
        yield save


def _saved_steps(run_dir: Path) -> list[int]:
    """Return the steps of complete checkpoints."""
    return [int(f.name) for f in (run_dir / "checkpoints").glob("*") if f.name.isdigit()]


def latest_step(run_dir: Path) -> int:
    """Return the step of a run's latest checkpoint, or 0 if there is none."""
    return max(_saved_steps(run_dir), default=0)


def is_finished(run_dir: Path, config: TrainConfig) -> bool:
    """Return whether a run has reached its last step, so that only export is left to do.

    Records another `data.licence` of a finished run, so only one host may call it. Nothing else is
    written.

    Args:
        run_dir: the run folder.
        config: of the run.

    Raises:
        ValueError: if the run was started with another configuration.
    """
    if not is_recorded(run_dir) or not is_started(run_dir):
        return False
    config, step = with_recorded_start(run_dir, config), latest_step(run_dir)
    check_same_config(run_dir, config)
    recorded = read_config(run_dir)
    if step == config.steps and recorded.data.licence != config.data.licence:
        stated = replace(recorded.data, licence=config.data.licence)
        record_config(run_dir, replace(recorded, data=stated), step)
    return step == config.steps


def restore_latest(run_dir: Path, shapes: TrainState) -> TrainState | None:
    """Read the state of a run's latest checkpoint, whatever devices it was written by.

    Nothing is written, so a run that is still training can be read.

    Args:
        run_dir: the run folder.
        shapes: the state with shapes and dtypes in place of arrays.

    Returns:
        The state as NumPy arrays, or None if there is no checkpoint.

    Raises:
        ValueError: if the checkpoint is damaged or of another configuration.
    """
    steps = _saved_steps(run_dir)
    if not steps:
        return None
    folder = run_dir / "checkpoints" / str(max(steps))
    try:
        named = read_arrays(folder / "default")
    except ValueError as error:
        earlier = [step for step in steps if step < max(steps)]
        then = f"to resume from step {max(earlier)}" if earlier else "to start again"
        raise ValueError(f"{error}: here, delete {folder} {then}") from error
    present = {_present_name(name): array for name, array in named.items()}
    return from_named(shapes, present, f"the checkpoint {folder}")


def _present_name(name: str) -> str:
    field, dot, rest = name.partition(".")
    return FORMER_FIELDS.get(field, field) + dot + rest
