"""Training runs: a folder each, that can be stopped at any time and go on from where they were.

A run folder holds `config.json`, `data.json` (what is known of the data), `metrics.jsonl` and
`tensorboard` (curves), `samples` (pictures), `checkpoints` (the last two, and what else is to be
kept) and `averages` (snapshots of the moving averages, all kept).
Everything random depends on the seed and the step alone, so an interrupted run ends with the very
weights of an uninterrupted one.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dgjax.checkpoints.checkpoint import Meta
from dgjax.data.dataset import Dataset
from dgjax.data.named_datasets import NoHeldOut, load_data
from dgjax.devices.sharding import device_mesh
from dgjax.model.field import Field
from dgjax.training.ema_snapshots import snapshot_steps, store
from dgjax.training.config import TrainConfig
from dgjax.training.hosts import check_same_step, first_host, interruptible, together
from dgjax.training.pipeline import batches
from dgjax.training.data_parallel import bring, check_batch, on_host, own_rows, place, shardings
from dgjax.training.recorder import Recorder, recorder
from dgjax.training.run_folder import averages_folder, checkpoints, claim, confirm, describe, restore
from dgjax.training.components import (
    check_data,
    compile_step,
    fresh_state,
    make_augment,
    model_shapes,
    state_shapes,
)
from dgjax.training.step import Metrics, TrainState
from dgjax.training.validation import Watch, watch

__all__ = ["Fit", "fit"]


class Fit(NamedTuple):
    """What a run has come to: the model with the first of its averages, and if it is finished."""

    model: Field
    meta: Meta
    state: TrainState
    finished: bool


def fit(config: TrainConfig, run_dir: str | os.PathLike, *, progress: bool = True) -> Fit:
    """Train until the last step, or until interrupted (Ctrl-C or SIGTERM), then save.

    An existing run in `run_dir` goes on from its last checkpoint. All devices are used; after
    `jax.distributed.initialize`, those of all hosts, which must share the folder.

    Args:
        config: of the run.
        run_dir: the run's folder; made if there is none.
        progress: show a progress bar.

    Raises:
        ValueError: if the run was started with another configuration or other data, the data are
            not to be had or do not fit the model, the devices do not divide the batch, hosts do
            not share the folder or one of them cannot begin, the folder cannot be written, or the
            loss or its gradient is not finite.
    """
    run_dir = Path(run_dir).absolute()
    mesh = device_mesh()
    with together():
        check_batch(config.batch, config.execution.accumulate, mesh)
        data = load_data(config.data, config.model.shape)
        check_data(config, data)
        rows = own_rows(config.batch, mesh)
        model, shapes = model_shapes(config), state_shapes(config)
        where = shardings(shapes, mesh, config.execution.parameters)
    with together():  # when all have their data: a claimed folder takes no other configuration
        if first_host():
            claim(run_dir, config, data)
    with together():
        confirm(run_dir, config, data)
        look = _watch(config, model, mesh) if config.records.watch_every else None
        restored = restore(run_dir, shapes)
    step = 0 if restored is None else int(restored.step)
    check_same_step(run_dir, step)
    state = fresh_state(config, where) if restored is None else place(restored, where)
    del restored  # as large as the state
    train_step = compile_step(config, model, mesh, where)
    every, snapshots = config.records, snapshot_steps(config.steps, config.ema_snapshots)
    key = jax.random.key(config.seed)
    feed = batches(
        data,
        make_augment(config),
        batch=config.batch,
        seed=config.seed,
        start=step,
        rows=rows,
        threads=config.execution.threads,
        ahead=config.execution.ahead,
    )
    with (
        interruptible(every.log_every) as stopped,  # outermost: the last write is finished too
        checkpoints(run_dir, every) as save,
        _recorder(run_dir, step) as record,
        _bar(config, step, progress and first_host()) as show,
    ):
        saved = step
        while step < config.steps and not stopped(step):
            batch = bring(next(feed), mesh)
            state, metrics = train_step(state, batch, jax.random.fold_in(key, step))
            step += 1
            if step % every.log_every == 0 or step == config.steps:
                show(step, _log(record, step, metrics))
            if look is not None and (step % every.watch_every == 0 or step == config.steps):
                _look(look, state, record, step, data)
            if step in snapshots or step % every.save_every == 0:
                _check_finite(step, metrics)  # what is kept must be fit to go on from
            if step in snapshots:  # before the checkpoint, from which it could not come again
                averages = on_host(state.averages)
                if first_host():
                    store(averages_folder(run_dir), step, averages)
            if step % every.save_every == 0:
                save(state)
                saved = step
        if saved != step:
            _check_finite(step, metrics)
            save(state)
    state = on_host(state)
    averaged = replace(model, network=jax.tree.map(jnp.asarray, state.averages[0]))
    return Fit(averaged, describe(run_dir, config, step), state, step == config.steps)


def _watch(config: TrainConfig, model: Field, mesh: Mesh) -> Watch:
    try:
        held_out = load_data(config.data, config.model.shape, "held-out")
        check_data(config, held_out, "held-out")
    except NoHeldOut:
        held_out = None
    except ValueError as error:
        raise ValueError(
            f"cannot watch losses on the held-out part: {error}; or set records.watch_every = 0"
        ) from error
    return watch(
        model,
        config.model.shape,
        mesh,
        held_out=held_out,
        size=config.records.watch_samples,
        batch=config.batch // config.execution.accumulate,
        sigma_data=config.data.sigma_data,
        classes=config.model.network.get("num_classes"),
    )


def _look(
    look: Watch, state: TrainState, record: Recorder | None, step: int, data: Dataset
) -> None:
    network = state.averages[0]
    losses = None if look.losses is None else look.losses(network)
    samples = look.samples(network)
    if record is None:
        return
    if losses is not None:
        names = [f"held_out_loss/w={w:.3g}" for w in look.w]
        record.scalars(step, dict(zip(names, map(float, losses), strict=True)))
    if samples.ndim == 4 and samples.shape[-1] in (1, 3):
        record.picture(step, samples, data.data_range)


def _log(record: Recorder | None, step: int, metrics: Metrics) -> float:
    loss, norm = float(metrics.loss), float(metrics.gradient_norm)
    if record is not None:
        record.scalars(step, {"loss": loss, "gradient_norm": norm})
    _check_finite(step, metrics)
    return loss


def _check_finite(step: int, metrics: Metrics) -> None:
    # The loss is that before the step: what the step does to the weights, the gradient tells.
    loss, norm = float(metrics.loss), float(metrics.gradient_norm)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise ValueError(
            f"the loss at step {step} is {loss} and its gradient's norm {norm}; lower "
            "optimiser.learning_rate"
        )


@contextmanager
def _recorder(run_dir: Path, start: int) -> Iterator[Recorder | None]:
    """The recorder on the first host, None on others."""
    with ExitStack() as opened:
        with together():
            record = opened.enter_context(recorder(run_dir, start)) if first_host() else None
        yield record


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
