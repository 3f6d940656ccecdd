"""A model of a run, with the moving average of any width that its snapshots can make."""

import os
from dataclasses import replace
from pathlib import Path

from dgjax.checkpoints.checkpoint import Meta, save
from dgjax.training import ema_snapshots as averages
from dgjax.training.run_folder import averages_folder, describe, read_config, restore
from dgjax.training.components import model_shapes, state_shapes

__all__ = ["average_recipe", "export"]


def export(
    run_dir: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    width: float | None = None,
    step: int | None = None,
) -> Meta:
    """Save a run's model with averaged weights to `folder`.

    Args:
        run_dir: the run's folder.
        folder: for the model.
        width: of the average, made of the stored ones (Karras et al. 2024, section 3.2). Unless
            it or `step` is given, the first of the run's `ema_widths` at the last checkpoint.
        step: up to which training counts; the last stored one unless given.

    Raises:
        ValueError: if `run_dir` is no run or has no checkpoint or no snapshot yet, the width and
            step cannot be made of what is stored, or `folder` cannot be written.
    """
    run_dir = Path(run_dir).absolute()
    config = read_config(run_dir)
    model = model_shapes(config)
    if width is None and step is None:
        state = restore(run_dir, state_shapes(config))
        if state is None:
            raise ValueError(
                f"{run_dir} has no checkpoint yet; wait for step {config.records.save_every}"
            )
        last, network = int(state.step), state.averages[0]
    else:
        chosen = average_recipe(run_dir, width=width, step=step)
        last = chosen.step
        network = averages.mix(averages_folder(run_dir), chosen, model.network)
    meta = describe(run_dir, config, last)
    save(folder, replace(model, network=network), meta)
    return meta


def average_recipe(
    run_dir: str | os.PathLike, *, width: float | None = None, step: int | None = None
) -> averages.Recipe:
    """How `export` would make the average of `width` after `step`, and how far it would be off.

    Args and errors as of `export`; the width is the first of `ema_widths` unless given.
    """
    run_dir = Path(run_dir).absolute()
    widths = read_config(run_dir).ema_widths
    width = widths[0] if width is None else width
    return averages.recipe(averages_folder(run_dir), widths, width, step)
