"""Training runs: a folder each, that can be stopped at any time and go on from where they were.

A run folder holds `config.json`, `data.json` (what is known of the data), `metrics.jsonl` (one
line of JSON each `log_every` steps), `checkpoints` (the last two) and `averages` (snapshots of the
moving averages, all kept).
Everything random depends on the seed and the step alone, so an interrupted run ends with the very
weights of an uninterrupted one.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dgjax.checkpoint import Meta
from dgjax.fields import Field
from dgjax.spec import build, construct
from dgjax.training import ema
from dgjax.training.averages import snapshot_steps, store
from dgjax.training.config import TrainConfig, make_optimiser
from dgjax.training.data import load_data
from dgjax.training.dataset import Dataset, batch_indices
from dgjax.training.levels import LEVELS
from dgjax.training.run import averages_folder, claim, describe, manager, restore, save
from dgjax.training.step import (
    Batch,
    LabelDropout,
    Metrics,
    TrainState,
    initial_state,
    make_train_step,
)

__all__ = ["Fit", "fit"]


class Fit(NamedTuple):
    """What a run has come to: the model with the first of its averages, and if it is finished."""

    model: Field
    meta: Meta
    state: TrainState
    finished: bool


def fit(config: TrainConfig, run_dir: str | os.PathLike, *, progress: bool = True) -> Fit:
    """Train until the last step, or until interrupted (Ctrl-C or SIGTERM), then save.

    An existing run in `run_dir` goes on from its last checkpoint.

    Args:
        config: of the run.
        run_dir: the run's folder; made if there is none.
        progress: show a progress bar.

    Raises:
        ValueError: if the run was started with another configuration or other data, the data are
            not to be had or do not fit the model, the folder cannot be written, or the loss is
            not finite.
    """
    run_dir = Path(run_dir).absolute()
    data = load_data(config.data, config.model.shape)
    _check_data(config, data)
    model, optimiser = build(config.model, seed=config.seed), make_optimiser(config)
    state = initial_state(model, optimiser, len(config.ema_widths))
    train_step = make_train_step(
        model,
        optimiser,
        construct("levels", LEVELS, config.levels),
        sigma_data=config.data.sigma_data,
        gammas=[ema.exponent(width) for width in config.ema_widths],
        drop_labels=_label_dropout(config),
    )
    key = jax.random.key(config.seed)
    snapshots = snapshot_steps(config.steps, config.ema_snapshots)
    claim(run_dir, config, data)
    with manager(run_dir) as checkpoints, _interruptible() as stop:
        state = restore(run_dir, state)
        start = step = int(state.step)
        with _metrics(run_dir, start) as log, _bar(config, start, progress) as show:
            while step < config.steps and not stop:
                batch = _batch(config, data, step)
                state, metrics = train_step(state, batch, jax.random.fold_in(key, step))
                step += 1
                if step % config.log_every == 0 or step == config.steps:
                    show(step, _write(log, step, metrics))
                if step in snapshots:  # before the checkpoint, from which it could not come again
                    store(averages_folder(run_dir), step, state.averages)
                if step % config.save_every == 0:
                    save(checkpoints, state)
        if step > start and checkpoints.latest_step() != step:
            save(checkpoints, state)
    averaged = replace(model, network=state.averages[0])
    return Fit(averaged, describe(run_dir, config, step), state, step == config.steps)


def _check_data(config: TrainConfig, data: Dataset) -> None:
    if data.shape != config.model.shape:
        raise ValueError(
            f"{config.data.dataset} has samples of shape {data.shape}, and model.shape is "
            f"{config.model.shape}; set it to {list(data.shape)}"
        )
    classes = config.model.network.get("num_classes")
    if classes is not None and (data.labels is None or data.labels.max() >= classes):
        raise ValueError(f"num_classes = {classes} needs labels from 0 to {classes - 1}")


def _label_dropout(config: TrainConfig) -> LabelDropout | None:
    if not config.label_dropout:
        return None
    return LabelDropout(config.label_dropout, config.model.network["num_classes"])


def _batch(config: TrainConfig, data: Dataset, step: int) -> Batch:
    indices = batch_indices(config.seed, step, config.batch, len(data))
    labelled = config.model.network.get("num_classes") is not None
    labels = data.labels[indices] if labelled and data.labels is not None else None
    rng = np.random.default_rng([config.seed, step, 1])  # two numbers are those of the orders
    samples = data.batch(indices, flip=config.data.flip, rng=rng)
    return Batch(jnp.asarray(samples), None if labels is None else jnp.asarray(labels))


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that receives SIGINT and SIGTERM, so that the step under way is finished."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # signals only come to the main thread
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(s, lambda number, frame: received.append(number)) for s in signals]
    try:
        yield received
    finally:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)


@contextmanager
def _metrics(run_dir: Path, start: int) -> Iterator[TextIO]:
    """`metrics.jsonl`, open for more lines, without those that an interrupted run left ahead."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= start]
    with file.open("w") as log:
        log.writelines(f"{line}\n" for line in kept)
        yield log


def _write(log: TextIO, step: int, metrics: Metrics) -> float:
    loss, norm = float(metrics.loss), float(metrics.gradient_norm)
    line = {"step": step, "loss": loss, "gradient_norm": norm, "time": round(time.time(), 3)}
    log.write(json.dumps(line) + "\n")
    log.flush()
    if not loss < float("inf"):
        raise ValueError(f"the loss at step {step} is {loss}; lower optimiser.learning_rate")
    return loss


@contextmanager
def _bar(config: TrainConfig, start: int, visible: bool) -> Iterator[Callable[[int, float], None]]:
    """A progress bar with loss, samples a second and time left; yields `show(step, loss)`."""
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
