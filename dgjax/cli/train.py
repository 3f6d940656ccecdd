"""`dgjax train`: a model from a configuration file, resumed where it was stopped."""

from pathlib import Path
from typing import Annotated

import typer

from dgjax.cli.options import console
from dgjax.training import average_recipe, ema, export, fit, load_config


def train(
    config: Annotated[str, typer.Argument(help="A TOML file, or the name of a shipped config.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/CONFIG unless told.")
    ] = None,
    ema_width: Annotated[
        float | None,
        typer.Option(
            help="Export a moving average of this width too, relative to the length of training. "
            "A finished run only exports."
        ),
    ] = None,
) -> None:
    """Train a model; run again with the same folder to go on where it stopped."""
    settings = load_config(config)
    if ema_width is not None:
        ema.exponent(ema_width)  # refused now, not after hours of training
    folder = Path("runs") / Path(config).stem if out is None else out
    done = fit(settings, folder)
    model = folder / "model"
    export(folder, model)
    state = "finished" if done.finished else "stopped; run the same command to go on"
    if ema_width is not None:
        model = folder / f"model-{ema_width:g}"
        chosen = average_recipe(folder, width=ema_width)
        export(folder, model, width=ema_width)
        console.print(
            f"EMA width {ema_width:g} at step {chosen.step}, made of {len(chosen.steps)} "
            f"snapshots; its profile is off by {chosen.error:.2%}"
        )
    console.print(
        f"{state} at step {int(done.state.step)}; sample it: dgjax sample --model {model}"
    )
