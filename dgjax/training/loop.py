"""The training loop: a run in a folder, which can be interrupted at any time and resumed.

A run folder holds

* `config.json` and `data.json`: the configuration and facts of the data,
* `changes.jsonl`: what was changed when the run was resumed, and `start.json`: the checkpoint whose
  weights it started from,
* `metrics.jsonl` and `tensorboard`: curves,
* `samples`: pictures of samples,
* `checkpoints`: the latest training states, and those to keep for ever,
* `averages`: snapshots of the moving averages, all of them.

Everything random depends on the seed and the step only, so an interrupted and resumed run ends with
exactly the weights of an uninterrupted one.
"""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dgjax.checkpoints.meta import Meta
from dgjax.data.dataset import Dataset
from dgjax.data.named_datasets import NoHeldOut, load_data
from dgjax.devices.progress import say
from dgjax.devices.sharding import device_mesh
from dgjax.messages import check_installed
from dgjax.model.field import Field
from dgjax.training.checkpointing import latest_step, open_checkpoints, restore_latest
from dgjax.training.components import (
    check_data,
    check_network,
    create_state,
    jit_train_step,
    make_augment,
    model_shapes,
    scale_notes,
    state_shapes,
)
from dgjax.training.config import TrainConfig
from dgjax.training.config_changes import describe_changes
from dgjax.training.data_parallel import (
    check_batch,
    check_memory,
    global_batch,
    host_rows,
    state_shardings,
    to_devices,
    to_host,
)
from dgjax.training.ema_snapshots import snapshot_folder, snapshot_steps, write_snapshot
from dgjax.training.hosts import (
    check_same_step,
    is_first_host,
    raise_on_all_hosts,
    stop_on_signal,
)
from dgjax.training.initial_weights import read_initial_weights, record_start
from dgjax.training.pipeline import training_batches
from dgjax.training.progress_bar import training_bar
from dgjax.training.recorder import Log, Recorder, open_recorder
from dgjax.training.run_folder import (
    check_recorded_run,
    lock_run,
    model_meta,
    record_run,
    with_recorded_start,
)
from dgjax.training.step import GradientFunction, Metrics, TrainState
from dgjax.training.validation import Validation, make_validation

__all__ = ["Fit", "fit"]


class Fit(NamedTuple):
    """The result of `fit`.

    Attributes:
        model: the model with the first of the moving averages as its weights.
        meta: metadata of the model.
        state: the whole training state, as NumPy arrays.
        finished: whether the run has reached its last step.
    """

    model: Field
    meta: Meta
    state: TrainState
    finished: bool


def fit(
    config: TrainConfig,
    run_dir: str | os.PathLike,
    *,
    progress: bool = True,
    log: Log | None = None,
    gradient: GradientFunction | None = None,
) -> Fit:
    """Train until the last step, or until SIGINT (Ctrl-C) or SIGTERM, and save a checkpoint.

    A run that exists in `run_dir` is resumed from its latest checkpoint. All devices are used;
    after `jax.distributed.initialize`, those of all hosts, which must share the folder.

    Args:
        config: of the run.
        run_dir: the run folder; made if missing.
        progress: whether to show a progress bar, what the data are, and what changed.
        log: called on the first host with what is recorded, for a logger of your own:
            `log(step, values)`, where values are numbers by their names ("loss", "gradient_norm",
            "held_out_loss/w=..."), or "samples", a picture (H, W, 3) in uint8. Steps that a
            stopped run takes again are logged again.
        gradient: calculates loss and gradient in place of JAX, for example on other hardware:
            `gradient(network, inputs) -> (mean loss, gradient in the weights, all losses)`, where
            `dgjax.training.objective.LossInputs` have leading axes (microbatches, B/microbatches).
            The mean, and its gradient, are of `inputs.importance` times the losses, and the losses
            are returned without it. Precision, dropout, a time-score loss and a penalty of the
            configuration are left to this function. Pass it again where a run is resumed: the
            folder does not say.

    Returns:
        Model, metadata and state after the last step taken.

    Raises:
        ValueError: if the run was started with other data, or with another value of a key that may
            not change; the weights to start from do not fit; the data are
            not available or do not fit the model; the devices do not divide the batch; hosts do not
            share the folder, or one of them cannot start; another process trains in the folder; it
            cannot be written; or the loss or its gradient is not finite.
    """
    run_dir = Path(run_dir).absolute()
    with ExitStack() as held:
        return _fit(config, run_dir, progress, log, gradient, held)


def _fit(
    config: TrainConfig,
    run_dir: Path,
    progress: bool,
    log: Log | None,
    gradient: GradientFunction | None,
    held: ExitStack,
) -> Fit:
    mesh = device_mesh()
    with raise_on_all_hosts():
        check_installed("train", ("grain", "tensorboardX"), "training")  # before data are read
        config = with_recorded_start(run_dir, config)
        check_batch(config.batch, config.execution.accumulate, mesh)
        data = load_data(config.data, config.model.shape)
        check_data(config, data)
        if progress and is_first_host():
            say(f"data: {data.summary}", *data.notes, *scale_notes(config, data))
        rows = host_rows(config.batch, mesh)
        model, shapes = model_shapes(config), state_shapes(config)
        check_network(config, model)
        where = state_shardings(shapes, mesh, config.execution.parameters)
        check_memory(shapes, where)
        start, fresh = None, not latest_step(run_dir)
        if config.init_from is not None and fresh:
            start = read_initial_weights(config.init_from, config.model, shapes.network)
    # Only once all hosts have their data: a recorded folder accepts no other configuration.
    with raise_on_all_hosts():
        if is_first_host():
            held.enter_context(lock_run(run_dir))
            step = latest_step(run_dir)
            changes = record_run(run_dir, config, data, step)
            if changes and progress:
                begins = f"resumed at step {step}" if step else "without checkpoint, started again"
                say(f"{begins} with changes: {describe_changes(changes)}")
    with raise_on_all_hosts():
        check_recorded_run(run_dir, config, data)
        validation = _validation(config, model, mesh) if config.records.validate_every else None
        restored = restore_latest(run_dir, shapes)
        if fresh and is_first_host():
            record_start(run_dir, start)
            if start is not None and progress:
                say(start.summary, *start.notes)
    step = 0 if restored is None else int(restored.step)
    check_same_step(run_dir, step)
    state = create_state(config, where) if restored is None else to_devices(restored, where)
    if start is not None:
        state = start.replace_weights(state, where)
    del restored, start  # as large as the state
    train_step = jit_train_step(config, model, mesh, where, gradient)
    every, snapshots = config.records, snapshot_steps(config.steps, config.ema_snapshots)
    key = jax.random.key(config.seed)
    batches = training_batches(
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
        stop_on_signal(every.log_every) as should_stop,  # outermost: pending writes finish too
        open_checkpoints(run_dir, every) as save,
        _first_host_recorder(run_dir, step, log) as recorder,
        training_bar(config, step, progress and is_first_host()) as show,
    ):
        saved = step
        while step < config.steps and not should_stop(step):
            batch = global_batch(next(batches), mesh)
            state, metrics = train_step(state, batch, jax.random.fold_in(key, step))
            step += 1
            last = step == config.steps
            if step % every.log_every == 0 or last:
                show(step, _log(recorder, step, metrics))
            if validation is not None and (step % every.validate_every == 0 or last):
                _validate(validation, state, recorder, step, data)
            if step in snapshots or step % every.save_every == 0:
                _check_finite(step, metrics)  # a saved state must be usable
            # Before the checkpoint: a run resumed from there would not write this snapshot again.
            if step in snapshots:
                averages = to_host(state.averages)
                if is_first_host():
                    write_snapshot(snapshot_folder(run_dir), step, averages)
            if step % every.save_every == 0:
                save(state)
                saved = step
        if saved != step:
            _check_finite(step, metrics)
            save(state)
    state = to_host(state)
    averaged = replace(model, network=jax.tree.map(jnp.asarray, state.averages[0]))
    return Fit(averaged, model_meta(run_dir, config, step), state, step == config.steps)


def _validation(config: TrainConfig, model: Field, mesh: Mesh) -> Validation:
    try:
        held_out = load_data(config.data, config.model.shape, "held-out")
        check_data(config, held_out, "held-out")
    except NoHeldOut:
        held_out = None
    except ValueError as error:
        raise ValueError(
            f"cannot validate on the held-out part: {error}; or set records.validate_every = 0"
        ) from error
    return make_validation(
        model,
        config.model.shape,
        mesh,
        held_out=held_out,
        size=config.records.validation_samples,
        batch=config.batch // config.execution.accumulate,
        sigma_data=config.data.sigma_data,
        classes=config.model.network.get("num_classes"),
    )


def _validate(
    validation: Validation,
    state: TrainState,
    recorder: Recorder | None,
    step: int,
    data: Dataset,
) -> None:
    """Validate the first moving average on all hosts, and record the results on the first."""
    network = state.averages[0]
    losses = None if validation.losses is None else validation.losses(network)
    samples = validation.samples(network)
    if recorder is None:
        return
    if losses is not None:
        names = [f"held_out_loss/w={w:.3g}" for w in validation.w]
        recorder.scalars(step, dict(zip(names, map(float, losses), strict=True)))
    if samples.ndim == 5:  # volumes, of which the middle slice is shown
        samples = samples[:, samples.shape[1] // 2]
    if samples.ndim == 4 and samples.shape[-1] in (1, 3):
        recorder.picture(step, samples, data.data_range)


def _log(recorder: Recorder | None, step: int, metrics: Metrics) -> float:
    loss, norm = float(metrics.loss), float(metrics.gradient_norm)
    _check_finite(step, metrics)  # before it is recorded: NaN is no JSON
    if recorder is not None:
        penalty = {} if metrics.penalty is None else {"penalty": float(metrics.penalty)}
        recorder.scalars(step, {"loss": loss, "gradient_norm": norm, **penalty})
    return loss


def _check_finite(step: int, metrics: Metrics) -> None:
    # The loss is from before the step; whether the new weights are finite, the gradient tells.
    loss, norm = float(metrics.loss), float(metrics.gradient_norm)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise ValueError(
            f"the loss at step {step} is {loss} and its gradient's norm {norm}; lower "
            "optimiser.learning_rate"
        )


@contextmanager
def _first_host_recorder(run_dir: Path, start: int, log: Log | None) -> Iterator[Recorder | None]:
    """Open the recorder on the first host; yield None on the others."""
    with ExitStack() as opened:
        with raise_on_all_hosts():
            first = is_first_host()
            recorder = opened.enter_context(open_recorder(run_dir, start, log)) if first else None
        yield recorder
