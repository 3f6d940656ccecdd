"""`dgjax train`: train a model from a configuration file, or continue a stopped run."""

import os
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated

import jax
import typer

from dgjax.cli.loggers import LOGGERS, open_logger
from dgjax.cli.options import note_shadowed
from dgjax.devices.progress import say
from dgjax.training import ema, export, fit, load_config, plan_average
from dgjax.training.checkpointing import is_finished, latest_step
from dgjax.training.config_files import read_config_text, shipped_configs
from dgjax.training.export import is_exported

__all__ = ["command", "join_hosts"]

STOPPED = 130  # exit status of a run that a signal stopped, as shells have it for Ctrl-C


def command(
    config: Annotated[
        str,
        typer.Argument(
            help="A TOML file, or the name of a shipped config: "
            f"{', '.join(shipped_configs())}, which has all keys and their defaults."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="runs/CONFIG")
    ] = None,
    ema_width: Annotated[
        float | None,
        typer.Option(
            help="Also export a moving average of this width, relative to the length of training. "
            "A finished run only exports."
        ),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            help="Start from the weights of a checkpoint, a run folder or a shipped model.",
            show_default="fresh weights, or config's init_from",
        ),
    ] = None,
    show: Annotated[
        bool,
        typer.Option(
            "--show",
            help="Print the config and stop, to copy and change it: "
            "dgjax train reference --show > mine.toml.",
        ),
    ] = False,
    logger: Annotated[
        str | None,
        typer.Option(
            help=f"Also send curves and pictures to {', '.join(LOGGERS)}.", show_default="none"
        ),
    ] = None,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed",
            help="Train on several hosts that share the folder: run the same command on each. The "
            "hosts are found by the cluster manager, or by the variables "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
        ),
    ] = False,
) -> None:
    """Train a model on all devices. To continue a stopped run, run the same command again.

    Length, batch, optimiser and the place of the data may have changed meanwhile.
    """
    if show:
        print(read_config_text(config), end="")
        return
    if distributed:
        join_hosts()
    note_shadowed("config", config, shipped_configs())
    settings = load_config(config)
    if ema_width is not None:
        ema.exponent(ema_width)  # raises now, not after hours of training
    if init_from is not None:
        place = Path(init_from)
        named = str(place.absolute()) if place.is_dir() else init_from
        settings = replace(settings, init_from=named)
    folder = Path("runs") / Path(config).stem if out is None else out
    # `fit` checks that several hosts share the folder, so it always runs there.
    trained = jax.process_count() > 1 or not is_finished(folder, settings)
    if trained:
        first = jax.process_index() == 0
        with open_logger(logger if first else None, folder, settings) as log:
            fit(settings, folder, log=log)
    if jax.process_index() != 0:
        return  # only the first host writes models
    model = folder / "model"
    # A finished run whose model is there may lie in a folder that cannot be written to.
    written = not trained and is_exported(folder, model)
    steps = latest_step(folder) if written else export(folder, model).steps
    finished = steps == settings.steps
    state = "finished" if finished else "stopped; run the same command to go on"
    if ema_width is not None:
        model = folder / f"model-{ema_width:g}"
        plan = plan_average(folder, width=ema_width)
        export(folder, model, width=ema_width)
        say(
            f"EMA width {ema_width:g} at step {plan.step}, made of {len(plan.steps)} "
            f"snapshots; its profile is off by {plan.error:.2%}"
        )
    say(f"{state} at step {steps}; sample it: dgjax sample --model {quote(str(model))}")
    if not finished:
        raise typer.Exit(STOPPED)  # so that `dgjax train ... && dgjax evaluate ...` ends here


def join_hosts() -> None:
    """Connect this process with those on the other hosts, so that all see all devices.

    Raises:
        ValueError: if the other hosts are not described, or do not answer.
    """
    # JAX reads the address from its variable, but both numbers only from cluster managers.
    count, own = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if own is None else int(own),
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot join other hosts ({str(error).splitlines()[0]}); set JAX_COORDINATOR_ADDRESS "
            "(HOST:PORT), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or run under a cluster manager"
        ) from error
