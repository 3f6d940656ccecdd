"""Folders that diffusers saved, as dgjax's own models."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from dgjax.checkpoints.checkpoint import PIXELS, Meta
from dgjax.checkpoints.spec import ModelSpec, build, build_autoencoder, build_network
from dgjax.configuration import unknown_name
from dgjax.importing.autoencoder import read_autoencoder
from dgjax.importing.dit import read_dit, stored_positions
from dgjax.importing.folder import Imported, card_licence, read_json
from dgjax.importing.names import fill
from dgjax.importing.schedulers import Process, read_scheduler
from dgjax.importing.unet2d import RENAMES, read_unet2d
from dgjax.importing.weights import open_weights

__all__ = ["ARCHITECTURES", "Architecture", "import_diffusers"]


class Architecture(NamedTuple):
    """How a class of diffusers' becomes a network of dgjax's.

    `read` makes of its config the shape of one sample, the network of a `ModelSpec` and the
    clock that it is told; `renames` and, of shape and network, `constants` are those of
    `dgjax.importing.names.fill`.
    """

    read: Callable[[Mapping[str, Any]], tuple[tuple[int, ...], dict[str, Any], str]]
    renames: tuple[tuple[str, str], ...] = ()
    constants: Callable[[tuple[int, ...], Mapping[str, Any]], Mapping[str, Any]] = (
        lambda shape, network: {}
    )


ARCHITECTURES: dict[str, Architecture] = {
    "UNet2DModel": Architecture(read_unet2d, RENAMES),
    "DiTTransformer2DModel": Architecture(read_dit, constants=stored_positions),
    "Transformer2DModel": Architecture(read_dit, constants=stored_positions),  # its older name
}
CLOCKS = {"step": "numbers of time steps", "level": "noise levels"}
PARTS = ("unet", "transformer")  # what pipelines call their network
OTHER_PARTS = ("scheduler", "vae")


def import_diffusers(
    folder: Path, *, scheduler: Path | None = None, licence: str | None = None, source: str = ""
) -> Imported:
    """The model in a folder of diffusers': a pipeline, or a network alone with a `scheduler`.

    Weights keep their precision and are read one array at a time into a network of which no
    weight is drawn.

    Args:
        folder: with model_index.json, or with the config.json of a network.
        scheduler: a scheduler's config or its folder, instead of the pipeline's.
        licence: in one line; that of the model card unless given.
        source: where the model came from, for its checkpoint; the folder unless given.

    Raises:
        ValueError: saying which part is missing, damaged, unknown here or does not fit another.
    """
    index = read_json(folder / "model_index.json") if _has_index(folder) else {}
    place = _network_folder(folder, index)
    config = read_json(place / "config.json")
    kind = str(config.get("_class_name"))
    if config.get("cross_attention_dim") is not None:
        raise ValueError(
            f"{kind} attends to a text or the like (cross_attention_dim), which is not read here: "
            "models without a condition, or of classes, are"
        )
    if kind not in ARCHITECTURES:
        raise unknown_name("network", kind, ARCHITECTURES)
    architecture = ARCHITECTURES[kind]
    name, process = _read_process(folder, scheduler)
    shape, network, clock = architecture.read(config)
    if clock != process.clock:
        raise ValueError(
            f"{name} and this {kind} do not belong together: the network is told {CLOCKS[clock]} "
            f"and the scheduler has {CLOCKS[process.clock]}; name the right one by --scheduler"
        )
    spec = ModelSpec(
        shape, network, process.path, process.parametrization, process.t_min, process.t_max
    )
    pictures = _read_pictures(folder, index, shape)
    like = nnx.eval_shape(lambda: build_network(spec))
    weights = fill(
        like,
        open_weights(place),
        f"the {kind} in {place}",
        renames=architecture.renames,
        constants=architecture.constants(shape, network),
    )
    autoencoder = None
    if pictures != PIXELS:
        place = folder / "vae"
        autoencoder = fill(
            nnx.eval_shape(lambda: build_autoencoder(pictures, shape)),
            open_weights(place),
            f"the autoencoder in {place}",
            renames=RENAMES,
        )
    meta = Meta(
        model=spec,
        dataset="not stated",
        data_range=process.data_range,
        licence=licence or card_licence(folder) or "not stated",
        steps=0,
        source=source or str(folder),
        autoencoder=pictures,
        labels=_read_labels(index, network.get("num_classes")),
    )
    return Imported(build(spec, weights), autoencoder, meta, kind, name, process.notes)


def _has_index(folder: Path) -> bool:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    return (folder / "model_index.json").is_file()


def _network_folder(folder: Path, index: Mapping[str, Any]) -> Path:
    """Where the network is: a pipeline's part, or the folder itself, as in the oldest ones."""
    if not index:
        return folder
    for part, value in index.items():
        if part not in (*PARTS, *OTHER_PARTS) and isinstance(value, list) and any(value):
            raise ValueError(
                f"the pipeline {index.get('_class_name')} has a part {part!r} ({value[-1]}), which "
                "is not read here: the model would be another without it"
            )
    parts = [part for part in PARTS if part in index]
    if len(parts) != 1:
        raise ValueError(
            f"the pipeline {index.get('_class_name')} has {len(parts)} networks called "
            f"{' or '.join(PARTS)}, where one is wanted"
        )
    inside = folder / parts[0]
    return inside if inside.is_dir() else folder


def _read_labels(index: Mapping[str, Any], classes: int | None) -> tuple[str, ...]:
    """Names of the classes where the pipeline says all of them."""
    names = index.get("id2label")
    if classes is None or not isinstance(names, dict):
        return ()
    found = [names.get(str(label)) for label in range(classes)]
    return tuple(map(str, found)) if None not in found else ()


def _read_pictures(
    folder: Path, index: Mapping[str, Any], shape: tuple[int, ...]
) -> dict[str, Any]:
    """The pipeline's autoencoder as `dgjax.checkpoints.checkpoint.Meta` describes it."""
    if not any(index.get("vae") or ()):
        return dict(PIXELS)
    config = read_json(folder / "vae" / "config.json")
    spec = read_autoencoder(config)
    inside = config.get("latent_channels", 4)
    if inside != shape[-1]:
        raise ValueError(
            f"the autoencoder in {folder / 'vae'} has latents of {inside} channels and the "
            f"network takes {shape[-1]}: they do not belong together"
        )
    return spec


def _read_process(folder: Path, scheduler: Path | None) -> tuple[str, Process]:
    """Class and process of the scheduler: the one given, or the one in the folder."""
    if scheduler is None:
        inside = folder / "scheduler"
        file = (inside if inside.is_dir() else folder) / "scheduler_config.json"
        if not file.is_file():
            raise ValueError(
                f"{folder} has no scheduler/scheduler_config.json, which says how much noise the "
                "network was trained on: give one by --scheduler"
            )
    else:
        file = scheduler / "scheduler_config.json" if scheduler.is_dir() else scheduler
    config = read_json(file)
    return str(config.get("_class_name")), read_scheduler(config)
