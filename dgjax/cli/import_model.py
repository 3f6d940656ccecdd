"""`dgjax import`: make a checkpoint of a model that another library trained."""

import os
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import jax
import typer

from dgjax.checkpoints.checkpoint import find_replaced, save
from dgjax.checkpoints.meta import Meta
from dgjax.cli.options import table, takes_no_condition
from dgjax.devices.progress import say
from dgjax.importing import Imported, import_model
from dgjax.importing.hub import is_hub_name
from dgjax.messages import printable
from dgjax.training import import_edm2_average

__all__ = ["command"]


def command(
    source: Annotated[
        str,
        typer.Argument(
            help="A file of weights, the folder of a network or a pipeline, a model in the hub's "
            "cache, or a name on the Hugging Face hub (owner/name)."
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="Folder for the checkpoint, which is made. A checkpoint that is there is replaced "
            "if it is of the same source."
        ),
    ],
    scheduler: Annotated[
        Path | None,
        typer.Option(
            help="Config of the scheduler: for a network alone, or instead of the model's own."
        ),
    ] = None,
    shape: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width, for a network whose config does not state them."),
    ] = None,
    autoencoder: Annotated[
        str | None,
        typer.Option(
            help="Folder of diffusers' autoencoder, or its name on the Hugging Face hub, for "
            "networks of latents of EDM, EDM2, DiT, SiT and REPA.",
            show_default="vae/ beside the network, or what its config names",
        ),
    ] = None,
    ema_width: Annotated[
        float | None,
        typer.Option(
            help="For a folder of snapshots of EDM2: import their moving average of this width, by "
            "post-hoc EMA."
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Licence in one line.", show_default="that of the model card"),
    ] = None,
) -> None:
    """Make a checkpoint of a model that another library trained, for all other commands."""
    old = find_replaced(out)  # before anything is downloaded
    if old is not None and old.source != source:
        raise ValueError(
            f"{out} has a checkpoint already, {_origin(old)}: choose another folder, or remove it"
        )
    if ema_width is not None:
        found = import_edm2_average(
            source, ema_width, autoencoder=autoencoder, licence=licence, source=source
        )
    else:
        if not os.path.exists(source) and is_hub_name(source):
            say(f"there is no file or folder {source} here: asking the Hugging Face hub for it")
        found = import_model(
            source, scheduler=scheduler, shape=shape, autoencoder=autoencoder, licence=licence
        )
    save(
        out,
        found.model,
        found.meta,
        autoencoder=found.autoencoder,
        prompts=found.prompts,
        dtype=None,
    )
    table(f"{source} as {out}", ["", ""], [list(row) for row in _facts(found).items()])
    if old is not None:
        say(f"{out} had a checkpoint of the same source, which is replaced")
    for note in found.notes:
        say(note, warning=True)
    print(printable(f"next: {_advice(found, out)}"))


def _origin(meta: Meta) -> str:
    return f"imported from {meta.source}" if meta.source else f"trained on {meta.dataset}"


def _advice(found: Imported, out: Path) -> str:
    """Return what to run next: a command, where commands can give the network's condition."""
    folder = _as_folder(out)
    sample = f"dgjax sample --model {quote(str(folder))}"
    if takes_no_condition(found.model):
        return sample
    if found.prompts is not None:
        return f'{sample} --prompt "..."'
    if found.meta.model.network.get("num_classes"):
        return f"{sample} --class 0"
    return f"{sample} --cond FILE.npz, which holds the arrays of the condition by their names"


def _facts(found: Imported) -> dict[str, str]:
    model, meta = found.model, found.meta
    path = model.path
    levels = [float(path.sigma(t) / path.alpha(t)) for t in (model.t_min, model.t_max)]
    low, high = meta.data_range
    autoencoder = found.autoencoder
    latents = (
        {}
        if autoencoder is None
        else {
            "samples": f"latents {_size(meta.shape)}",
            "pictures": f"{_size(autoencoder.image_shape)}, from {low:g} to {high:g}",
            "autoencoder": _weights(autoencoder),
        }
    )
    prompts = (
        {}
        if found.prompts is None
        else {"text encoders": " and ".join(map(_weights, found.prompts.encoders))}
    )
    return {
        "architecture": found.architecture,
        "samples": f"{_size(meta.shape)}, from {low:g} to {high:g}",
        **latents,
        **prompts,
        "parameters": _weights(model.network),
        "schedule": f"{found.scheduler}: {meta.model.path['kind']}",
        "prediction": meta.model.parametrization["kind"],
        "noise levels": f"sigma/alpha from {levels[0]:.4g} to {levels[1]:.4g}",
        "licence": meta.licence,
        "source": meta.source,
    }


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _weights(network: Any) -> str:
    weights = jax.tree.leaves(network)
    count, size = sum(w.size for w in weights), sum(w.nbytes for w in weights)
    kinds = " and ".join(sorted({w.dtype.name for w in weights}))
    return f"{count:,} ({size / 2**20:,.1f} MiB as {kinds})"


def _as_folder(out: Path) -> str:
    """Write `out` so that --model takes it for a folder, not for a shipped model."""
    return str(out) if len(out.parts) > 1 else f"./{out}"
