"""Loggers that `dgjax train --logger` sends curves and pictures to."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dgjax.checkpoints.configuration import unknown_name
from dgjax.training.config import TrainConfig
from dgjax.training.recorder import Log

__all__ = ["LOGGERS", "open_logger"]

LOGGERS = ("wandb",)


@contextmanager
def open_logger(name: str | None, run_dir: Path, config: TrainConfig) -> Iterator[Log | None]:
    """Open a logger by its name, and close it at the end of the block.

    Args:
        name: one of `LOGGERS`, or None for no logger.
        run_dir: the run folder. A resumed run continues its curves.
        config: of the run.

    Yields:
        The function `log(step, values)` for `dgjax.training.fit`, or None.

    Raises:
        ValueError: if the name is unknown, or its package is not installed.
    """
    if name is None:
        yield None
        return
    if name not in LOGGERS:
        raise unknown_name("logger", name, LOGGERS)
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"--logger wandb needs Weights & Biases ({error}): `pip install wandb`"
        ) from error
    run_dir.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project="dgjax",
        name=run_dir.name,
        id=hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:16],
        resume="allow",
        dir=str(run_dir),
        config=config.to_dict(),
    )

    def log(step: int, values: dict) -> None:
        pictures = {k: wandb.Image(v) for k, v in values.items() if isinstance(v, np.ndarray)}
        run.log({**values, **pictures}, step=step)

    try:
        yield log
    finally:
        run.finish()
