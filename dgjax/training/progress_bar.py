"""The progress bar of a training run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dgjax.training.config import TrainConfig

__all__ = ["training_bar"]


@contextmanager
def training_bar(
    config: TrainConfig, start: int, visible: bool
) -> Iterator[Callable[[int, float], None]]:
    """Show loss, samples per second and time left.

    Args:
        config: of the run.
        start: step from which the run continues.
        visible: whether to show anything.

    Yields:
        The function `show(step, loss)`.
    """
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} img/s"),
        TimeRemainingColumn(),
    )
    began = time.perf_counter()
    with Progress(*columns, disable=not visible) as bar:
        task = bar.add_task("", total=config.steps, completed=start, loss=float("nan"), rate=0.0)

        def show(step: int, loss: float) -> None:
            rate = (step - start) * config.batch / (time.perf_counter() - began)
            bar.update(task, completed=step, loss=loss, rate=rate)

        yield show
