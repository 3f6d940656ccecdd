"""Import models that diffusers saved: pipelines, or networks with a scheduler."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from dgjax.checkpoints.checkpoint import PIXELS, Meta
from dgjax.checkpoints.configuration import unknown_name
from dgjax.checkpoints.spec import ModelSpec, build, build_autoencoder, build_network
from dgjax.importing.diffusers_autoencoder import read_autoencoder
from dgjax.importing.diffusers_dit import read_dit, stored_positions
from dgjax.importing.diffusers_schedulers import Process, read_scheduler
from dgjax.importing.diffusers_unet2d import RENAMES, read_unet2d
from dgjax.importing.model_folder import Imported, card_licence, read_json
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.weights import open_weights

__all__ = ["ARCHITECTURES", "Architecture", "import_diffusers"]


class Architecture(NamedTuple):
    """The import of one network class of diffusers.

    Attributes:
        read: maps the content of config.json to the shape of one sample, the `network` of a
            `ModelSpec`, and the time that the network takes ("time_step" or "noise_level").
        renames: argument of `load_state_dict`.
        constants: maps shape and network to this argument of `load_state_dict`.
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
TIMES = {"time_step": "time steps", "noise_level": "noise levels"}
NETWORK_PARTS = ("unet", "transformer")  # names of the network in pipelines
OTHER_PARTS = ("scheduler", "vae")


def import_diffusers(
    folder: str | os.PathLike,
    *,
    scheduler: str | os.PathLike | None = None,
    licence: str | None = None,
    source: str = "",
) -> Imported:
    """Import a model that diffusers saved.

    Weights keep their precision. They are read one array at a time, and no initial weights are
    drawn.

    Args:
        folder: folder of a pipeline (with model_index.json) or of a network (with config.json).
        scheduler: the scheduler's config file or folder; needed for a network alone, and in place
            of the scheduler of a pipeline.
        licence: licence of the model in one line; unless given, that of the model card.
        source: where the model came from, for the record; unless given, the folder.

    Returns:
        The model, with its autoencoder if it is one of latents.

    Raises:
        ValueError: if a part is missing, damaged, not supported or does not fit another; the
            message names it.
    """
    folder = Path(folder)
    index = read_json(folder / "model_index.json") if _has_index(folder) else {}
    network_folder = _network_folder(folder, index)
    config = read_json(network_folder / "config.json")
    kind = str(config.get("_class_name"))
    if config.get("cross_attention_dim") is not None:
        raise ValueError(
            f"{kind} attends to a text or another sequence (cross_attention_dim), which is not "
            "supported: import a model without a condition, or with class labels"
        )
    if kind not in ARCHITECTURES:
        raise unknown_name("network", kind, ARCHITECTURES)
    architecture = ARCHITECTURES[kind]
    name, process = _read_process(folder, None if scheduler is None else Path(scheduler))
    shape, network, time = architecture.read(config)
    if time != process.time:
        raise ValueError(
            f"{name} and this {kind} do not belong together: the network takes {TIMES[time]} and "
            f"the scheduler has {TIMES[process.time]}; pass the right one as scheduler"
        )
    spec = ModelSpec(
        shape, network, process.path, process.parametrization, process.t_min, process.t_max
    )
    autoencoder_spec = _read_autoencoder_spec(folder, index, shape)
    like = nnx.eval_shape(lambda: build_network(spec))
    weights = load_state_dict(
        like,
        open_weights(network_folder),
        f"the {kind} in {network_folder}",
        renames=architecture.renames,
        constants=architecture.constants(shape, network),
    )
    autoencoder = None
    if autoencoder_spec != PIXELS:
        autoencoder = load_state_dict(
            nnx.eval_shape(lambda: build_autoencoder(autoencoder_spec, shape)),
            open_weights(folder / "vae"),
            f"the autoencoder in {folder / 'vae'}",
            renames=RENAMES,
        )
    meta = Meta(
        model=spec,
        dataset="not stated",
        data_range=process.data_range,
        licence=licence or card_licence(folder) or "not stated",
        steps=0,
        source=source or str(folder),
        autoencoder=autoencoder_spec,
        labels=_read_labels(index, network.get("num_classes")),
    )
    return Imported(build(spec, weights), autoencoder, meta, kind, name, process.notes)


def _has_index(folder: Path) -> bool:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    return (folder / "model_index.json").is_file()


def _network_folder(folder: Path, index: Mapping[str, Any]) -> Path:
    """Return the folder of the network: a part of a pipeline or, in the oldest ones, `folder`."""
    if not index:
        return folder
    for part, value in index.items():
        if part not in (*NETWORK_PARTS, *OTHER_PARTS) and isinstance(value, list) and any(value):
            raise ValueError(
                f"the pipeline {index.get('_class_name')} has a part {part!r} ({value[-1]}), which "
                "is not supported, and without which it would be another model"
            )
    parts = [part for part in NETWORK_PARTS if part in index]
    if len(parts) != 1:
        raise ValueError(
            f"the pipeline {index.get('_class_name')} has {len(parts)} networks called "
            f"{' or '.join(NETWORK_PARTS)}, and only pipelines with one are supported"
        )
    inside = folder / parts[0]
    return inside if inside.is_dir() else folder


def _read_labels(index: Mapping[str, Any], classes: int | None) -> tuple[str, ...]:
    """Return the names of the classes, or none unless the pipeline names every class."""
    names = index.get("id2label")
    if classes is None or not isinstance(names, dict):
        return ()
    found = [names.get(str(label)) for label in range(classes)]
    return tuple(map(str, found)) if None not in found else ()


def _read_autoencoder_spec(
    folder: Path, index: Mapping[str, Any], shape: tuple[int, ...]
) -> dict[str, Any]:
    """Return the pipeline's autoencoder as `dgjax.checkpoints.Meta` describes it."""
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
    """Return class and process of the given scheduler, or of the one in the folder."""
    if scheduler is None:
        inside = folder / "scheduler"
        file = (inside if inside.is_dir() else folder) / "scheduler_config.json"
        if not file.is_file():
            raise ValueError(
                f"{folder} has no scheduler/scheduler_config.json, which says how much noise the "
                "network was trained on: pass the scheduler's config as scheduler"
            )
    else:
        file = scheduler / "scheduler_config.json" if scheduler.is_dir() else scheduler
    config = read_json(file)
    return str(config.get("_class_name")), read_scheduler(config)
