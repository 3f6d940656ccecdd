"""`dgjax train`: a model from a configuration file, resumed where it was stopped."""

from pathlib import Path
from typing import Annotated

import typer

from dgjax.cli.options import console
from dgjax.training import export, fit, load_config


def train(
    config: Annotated[str, typer.Argument(help="A TOML file, or the name of a shipped config.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/CONFIG unless told.")
    ] = None,
) -> None:
    """Train a model; run again with the same folder to go on where it stopped."""
    settings = load_config(config)
    folder = Path("runs") / Path(config).stem if out is None else out
    done = fit(settings, folder)
    model = folder / "model"
    export(folder, model)
    state = "finished" if done.finished else "stopped; run the same command to go on"
    console.print(
        f"{state} at step {int(done.state.step)}; sample it: dgjax sample --model {model}"
    )
