"""Import a model from wherever it is: a file, a folder, or a name on the Hugging Face hub."""

import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dgjax.importing.adm import import_adm, is_adm
from dgjax.importing.diffusers import import_diffusers
from dgjax.importing.diffusers_parts import is_diffusers
from dgjax.importing.dit import import_dit, is_dit
from dgjax.importing.edm import import_edm, is_edm
from dgjax.importing.edm2 import import_edm2, is_edm2
from dgjax.importing.hub import HubModel, is_hub_name, local_snapshot, open_hub
from dgjax.importing.model_folder import Imported
from dgjax.importing.score_sde import import_score_sde, is_score_sde
from dgjax.importing.unknown import explain, lora_notes, only_weights

__all__ = ["READERS", "import_model"]

# Asked in this order: whether it recognises a path, and what reads it. Both take the path. The
# second takes those options of `import_model` that its models have.
READERS: tuple[tuple[Callable[[Path], bool], Callable[..., Imported]], ...] = (
    (is_edm2, import_edm2),
    (is_edm, import_edm),
    (is_diffusers, import_diffusers),
    (is_adm, import_adm),
    (is_dit, import_dit),
    (is_score_sde, import_score_sde),
)
CONFIGS = ("config.json", "model_index.json")


def import_model(
    source: str | os.PathLike,
    *,
    scheduler: str | os.PathLike | None = None,
    shape: tuple[int, ...] | None = None,
    autoencoder: str | os.PathLike | None = None,
    licence: str | None = None,
) -> Imported:
    """Import a model that another library trained.

    From the hub the configs are downloaded first. What cannot be read is refused then, and only
    the weights that are needed are downloaded after that.

    Args:
        source: a file of weights, the folder of a network or of a pipeline, a model's folder in
            the hub's cache, or a name on the hub such as "google/ddpm-cifar10-32".
        scheduler: the scheduler's config file or folder, for a network of diffusers alone or in
            place of the one in its pipeline.
        shape: (H, W) of the samples, for a network whose config does not state it.
        autoencoder: folder of diffusers' autoencoder or its name on the hub, for networks of
            latents of EDM, EDM2, DiT, SiT and REPA.
        licence: licence of the model in one line; unless given, that of the model card.

    Returns:
        The model, with its autoencoder if it is one of latents.

    Raises:
        ValueError: if there is nothing at `source`, or it is not read. The first line says what it
            is and what to do; further lines are code to run.
    """
    options = {"scheduler": scheduler, "shape": shape, "licence": licence}
    options |= {"autoencoder": autoencoder}
    path = Path(source)
    if os.path.exists(path):  # False for names that no file can have
        path = local_snapshot(path)
        path = path.parent if path.name in CONFIGS else path
        read = _reader(path)
        if read is None and (file := only_weights(path)):
            path, read = file, _reader(file)
        if read is None:
            raise explain(path)
        files = [f.name for f in _beside(path)]
        return _noted(_call(read, path, str(source), options), files)
    if not is_hub_name(str(source)):
        first = path.parts[0] if path.parts else ""
        reason = (
            f"{first} is here, so that it is no name on the Hugging Face hub"
            if os.path.exists(first)
            else "it has not the form owner/name of a name on the Hugging Face hub"
        )
        raise ValueError(
            f"there is no file or folder {source}, and {reason}, which was not asked: give the "
            "path of a model"
        )
    found = open_hub(str(source))
    read = _reader(found.folder)
    if read is None:
        raise _explain_hub(str(source), found)
    opened = {"weights": found.open_weights}
    return _noted(_call(read, found.folder, str(source), {**options, **opened}), found.files)


def _reader(path: Path) -> Callable[..., Imported] | None:
    return next((read for recognise, read in READERS if recognise(path)), None)


def _call(
    read: Callable[..., Imported], path: Path, source: str, options: dict[str, Any]
) -> Imported:
    given = {name: value for name, value in options.items() if value is not None}
    foreign = sorted(given.keys() - inspect.signature(read).parameters.keys())
    if foreign:
        raise ValueError(
            f"{source} is read by {read.__name__}, which takes no {foreign[0]}: leave it out"
        )
    return read(path, source=source, **given)


def _beside(path: Path) -> list[Path]:
    """Return the files of a model's folder and of the folders in it."""
    folder = path if path.is_dir() else path.parent
    return [f for f in (*folder.iterdir(), *folder.glob("*/*")) if f != path and f.is_file()]


def _noted(found: Imported, files: Iterable[str]) -> Imported:
    return found._replace(notes=(*found.notes, *lora_notes(files)))


def _explain_hub(name: str, found: HubModel) -> ValueError:
    if found.folder.is_dir() and any(found.folder.glob("*config.json")):
        return explain(found.folder)
    files = ", ".join(found.files[:5])
    if lora_notes(found.files):
        return ValueError(
            f"{name} on the Hugging Face hub is a LoRA, a change to the weights of a model: merge "
            "it into its model there (fuse_lora, then save_pretrained), and import the result"
        )
    return ValueError(
        f"{name} on the Hugging Face hub has no config of a model known here, but {files or 'no'} "
        f"files; to import one of them: hf download {name} FILE --local-dir ."
    )
