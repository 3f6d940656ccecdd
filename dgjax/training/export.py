"""Export a model from a training run, with a moving average of any width as its weights."""

import os
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp

from dgjax.checkpoints.checkpoint import load_meta, save
from dgjax.checkpoints.meta import Meta
from dgjax.model.energy import EnergyPrediction
from dgjax.training.checkpointing import latest_step, restore_latest
from dgjax.training.components import model_shapes, state_shapes
from dgjax.training.ema_snapshots import (
    Reconstruction,
    plan_reconstruction,
    reconstruct,
    snapshot_folder,
)
from dgjax.training.run_folder import model_meta, read_config

__all__ = ["export", "is_exported", "plan_average"]


def export(
    run_dir: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    width: float | None = None,
    step: int | None = None,
) -> Meta:
    """Save the model of a run, with averaged weights, as a checkpoint of dgjax.

    Without `width` and `step`, the weights are the first of the run's `ema_widths` at the latest
    checkpoint. With either, they are reconstructed from snapshots by post-hoc EMA (EDM2, arXiv
    2312.02696, section 3.2).

    Args:
        run_dir: the run folder.
        folder: to write the model to.
        width: of the average, relative to the length of training; the first of `ema_widths` if
            None.
        step: at which the average ends; the last stored step if None.

    Returns:
        Metadata of the model.

    Raises:
        ValueError: if `run_dir` is not a run, or has no checkpoint or snapshot yet; the average
            cannot be reconstructed; or `folder` cannot be written.
    """
    run_dir = Path(run_dir).absolute()
    config = read_config(run_dir)
    model = model_shapes(config)
    if width is None and step is None:
        state = restore_latest(run_dir, state_shapes(config))
        if state is None:
            raise ValueError(
                f"{run_dir} has no checkpoint yet; wait for step {config.records.save_every}"
            )
        last, network = int(state.step), state.averages[0]
    else:
        plan = plan_average(run_dir, width=width, step=step)
        last = plan.step
        network = reconstruct(snapshot_folder(run_dir), plan, model.network)
    meta = model_meta(run_dir, config, last)
    # An energy is a large number of which differences count: half precision would be seen.
    dtype = None if isinstance(model.parametrization, EnergyPrediction) else jnp.float16
    save(folder, replace(model, network=network), meta, dtype=dtype)
    return meta


def is_exported(run_dir: Path, folder: Path) -> bool:
    """Return whether a folder has the model of a run as its latest checkpoint has it.

    Args:
        run_dir: the run folder.
        folder: that `export` may have written, without `width` and `step`.

    Raises:
        ValueError: if `run_dir` is not a run.
    """
    meta = model_meta(run_dir, read_config(run_dir), latest_step(run_dir))
    try:
        found = load_meta(folder)
    except ValueError:
        return False
    return replace(found, version=meta.version) == meta


def plan_average(
    run_dir: str | os.PathLike, *, width: float | None = None, step: int | None = None
) -> Reconstruction:
    """Return how `export` reconstructs an average from snapshots, and with what error.

    Args:
        run_dir: the run folder.
        width: of the average, relative to the length of training; the first of `ema_widths` if
            None.
        step: at which the average ends; the last stored step if None.

    Raises:
        ValueError: if `run_dir` is not a run or has no snapshot yet, or the average cannot be
            reconstructed.
    """
    run_dir = Path(run_dir).absolute()
    widths = read_config(run_dir).ema_widths
    width = widths[0] if width is None else width
    return plan_reconstruction(snapshot_folder(run_dir), widths, width, step)
