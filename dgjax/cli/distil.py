"""`dgjax distil`: train a head that predicts a model's divergence, and store it with the model."""

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from rich.filesize import decimal

from dgjax.checkpoints.checkpoint import digest, load, save
from dgjax.checkpoints.opened import Model
from dgjax.checkpoints.pretrained import pretrained_models
from dgjax.checkpoints.spec import ModelSpec
from dgjax.cli.options import MOST_BATCH, MOST_LATENTS, SEED, choose_model, takes_no_condition
from dgjax.devices.progress import progress, say
from dgjax.model.trace_head import find_layers
from dgjax.training.distillation import distil
from dgjax.training.lessons import PART, stored_lessons

__all__ = ["command"]

INPUT_ALONE = "no layer, since none was found in the network: it sees x and t alone"


def command(
    model: Annotated[
        str, typer.Argument(help="Name of a shipped model, or a checkpoint's folder.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for a copy of the model that has the head.")],
    points: Annotated[
        int,
        typer.Option(
            min=PART,
            max=MOST_LATENTS,
            help="Points to learn from, on trajectories of the model at random q.",
        ),
    ] = 20_000,
    products: Annotated[
        int, typer.Option(min=2, max=1000, help="Jacobian products at each point, an even number.")
    ] = 4,
    layers: Annotated[
        int, typer.Option(min=0, max=100, help="Layers of the network that the head reads.")
    ] = 6,
    width: Annotated[int, typer.Option(min=1, max=10_000, help="Channels of the head.")] = 64,
    steps: Annotated[int, typer.Option(min=1, max=10**9, help="Optimisation steps.")] = 6000,
    batch: Annotated[
        int, typer.Option(min=1, max=MOST_BATCH, help="Points in one optimisation step.")
    ] = 64,
    seed: SEED = 0,
) -> None:
    """Train a head that predicts a model's divergence, for --divergence distilled.

    No data are needed. What is measured is stored in OUT/lessons, so that a stopped command
    continues with it. With another --points, --width, --steps or --batch it is not measured again.
    """
    chosen = choose_model(model)
    _check(chosen, products)
    field = replace(chosen.field, trace_head=None)
    found = tuple(find_layers(field, jnp.zeros(chosen.meta.shape), layers, _example(chosen)))
    sha256 = digest(field, chosen.meta, chosen.autoencoder)
    if model not in pretrained_models() and out.resolve() == Path(model).resolve():
        raise ValueError(f"--out {out} is the model itself: take another folder for the copy")
    if not (out / "config.json").exists():
        save(out, field, chosen.meta, autoencoder=chosen.autoencoder, dtype=None)
    elif digest(*load(out), chosen.autoencoder) != sha256:
        raise ValueError(f"{out} holds another model: take another folder")
    lessons_folder = out / "lessons"
    with progress("measuring", points, unit="points") as show:
        lessons = stored_lessons(
            field,
            chosen.meta.shape,
            found,
            lessons_folder,
            points,
            conditions=_labels(chosen),
            products=products,
            seed=seed,
            facts={"sha256": sha256},
            show=show,
        )
    losses: list[float] = []
    with progress("training the head", steps, unit="steps") as show:

        def log(step: int, loss: float) -> None:
            losses.append(loss)
            show(1)

        options: dict[str, Any] = {"steps": steps, "batch": batch, "width": width, "log": log}
        head = distil(lessons, found, key=jax.random.key(seed), **options)
    saved, meta = load(out)
    saved = replace(saved, trace_head=head)
    save(out, saved, meta, autoencoder=chosen.autoencoder, dtype=None)
    bound = np.trapezoid(head.errors[...], head.log_levels[...])
    weights = sum(leaf.size for leaf in jax.tree.leaves(head))
    tenth = -(-steps // 10)
    stored = decimal(sum(file.stat().st_size for file in lessons_folder.iterdir()))
    say(
        f"a head of {weights:,} weights that reads {', '.join(found) or INPUT_ALONE}; mean loss "
        f"{np.mean(losses[:tenth]):.3g} in the first tenth of the steps, "
        f"{np.mean(losses[-tenth:]):.3g} in the last",
        f"stated error of a log-density from t_max to t_min: {bound:.2g} nats",
        f"{lessons_folder} ({stored}) is needed only to train again",
        f"next: dgjax sample --model {quote(str(out))} --divergence distilled",
    )


def _check(chosen: Model, products: int) -> None:
    if products % 2:
        raise ValueError(f"--products must be an even number, got {products}")
    if not isinstance(chosen.meta.model, ModelSpec):
        raise ValueError(
            f"{chosen.name} is code, which no checkpoint holds: use dgjax.training.distil in Python"
        )
    if chosen.meta.text:
        raise ValueError(
            f"the model {chosen.name} takes prompts: use dgjax.training.distil in Python, with the "
            "conditions of your prompts"
        )


def _labels(chosen: Model) -> jax.Array | None:
    """Return the labels of all classes, and that of no class where the model can do without."""
    classes = chosen.meta.model.network.get("num_classes")
    if not classes:
        return None
    return jnp.arange(classes + takes_no_condition(chosen.field))


def _example(chosen: Model) -> jax.Array | None:
    labels = _labels(chosen)
    return None if labels is None else labels[0]
