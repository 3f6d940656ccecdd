"""Import models that diffusers saved: pipelines, or networks with a scheduler."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from dgjax.checkpoints.autoencoder_spec import build_autoencoder
from dgjax.checkpoints.configuration import unknown_name
from dgjax.checkpoints.meta import PIXELS, Meta
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from dgjax.importing.diffusers_autoencoder import read_autoencoder
from dgjax.importing.diffusers_dit import read_dit, share_embedding, stored_positions
from dgjax.importing.diffusers_flux import read_flux_transformer
from dgjax.importing.diffusers_parts import BRIDGE, SCHEDULER, Parts, find_parts
from dgjax.importing.diffusers_schedulers import Process, read_scheduler
from dgjax.importing.diffusers_sd3 import read_sd3_transformer, share_positions
from dgjax.importing.diffusers_text import TextParts, load_text, read_text
from dgjax.importing.diffusers_text_conditions import PROMPTED
from dgjax.importing.diffusers_unet2d import RENAMES, read_unet2d
from dgjax.importing.diffusers_unet2d_condition import RENAMES as CONDITION_RENAMES
from dgjax.importing.diffusers_unet2d_condition import read_unet2d_condition
from dgjax.importing.model_folder import Imported, card_licence, read_json
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.weights import open_weights

__all__ = ["ARCHITECTURES", "Architecture", "import_diffusers"]


Network = dict[str, Any]
Share = Callable[[Network, Mapping[str, Any]], tuple[Network, Mapping[str, Any]]]


class Architecture(NamedTuple):
    """The import of one network class of diffusers.

    Attributes:
        read: maps the content of config.json to the shape of one sample, the `network` of a
            `ModelSpec`, and the time that the network takes ("time_step" or "noise_level").
        renames: argument of `load_state_dict`.
        constants: maps shape and network to this argument of `load_state_dict`.
        share: maps the `network` of a `ModelSpec` and its weights to the same without arrays that
            the network computes, and with arrays that are stored several times kept once.
    """

    read: Callable[[Mapping[str, Any]], tuple[tuple[int, ...], dict[str, Any], str]]
    renames: tuple[tuple[str, str], ...] = ()
    constants: Callable[[tuple[int, ...], Mapping[str, Any]], Mapping[str, Any]] = (
        lambda shape, network: {}
    )
    share: Share = lambda network, weights: (network, weights)


DIT = Architecture(read_dit, constants=stored_positions, share=share_embedding)
ARCHITECTURES: dict[str, Architecture] = {
    "UNet2DModel": Architecture(read_unet2d, RENAMES),
    "UNet2DConditionModel": Architecture(read_unet2d_condition, CONDITION_RENAMES),
    "SD3Transformer2DModel": Architecture(read_sd3_transformer, share=share_positions),
    "FluxTransformer2DModel": Architecture(read_flux_transformer),
    "DiTTransformer2DModel": DIT,
    "Transformer2DModel": DIT,  # its older name
}
# The setting of the size of the samples, for networks that work at any.
SIZES = {
    "UNet2DModel": "sample_size",
    "UNet2DConditionModel": "sample_size",
    "SD3Transformer2DModel": "latent_size",
    "FluxTransformer2DModel": "latent_size",
}
# Settings that training adds to the config of averaged weights (EMA).
AVERAGE_SETTINGS = {
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step"),
    "use_ema_warmup",
}
NO_TEXT = "there is no text encoder: pass the embeddings of prompts as cond"
TIMES = {"time_step": "time steps", "noise_level": "noise levels"}


def import_diffusers(
    folder: str | os.PathLike,
    *,
    scheduler: str | os.PathLike | None = None,
    shape: tuple[int, ...] | None = None,
    licence: str | None = None,
    source: str = "",
    weights: Callable[[Path], Mapping[str, Any]] = open_weights,
) -> Imported:
    """Import a model that diffusers saved.

    Weights keep their precision. They are read one array at a time, and no initial weights are
    drawn. All configs are read and checked before any weights are opened.

    Args:
        folder: folder of a pipeline (with model_index.json), of a network (with config.json) or of
            a training run; or a file of weights in the folder of a network.
        scheduler: the scheduler's config file or folder; needed for a network alone, and in place
            of the scheduler of a pipeline.
        shape: (H, W) of the samples, for a config without sample_size or with another one.
        licence: licence of the model in one line; unless given, that of the model card.
        source: where the model came from, for the record; unless given, the folder.
        weights: opens the weights of a file or folder.

    Returns:
        The model, with its autoencoder if it is one of latents.

    Raises:
        ValueError: if a part is missing, damaged, not supported or does not fit another; the
            message names it.
    """
    folder = Path(folder)
    parts = find_parts(folder)
    config = read_json(parts.network / "config.json")
    kind = str(config.get("_class_name"))
    if config.get("cross_attention_dim") is not None and kind != "UNet2DConditionModel":
        raise ValueError(
            f"{kind} attends to a text or another sequence (cross_attention_dim), and only models "
            f"without a condition or with class labels are imported; {BRIDGE}"
        )
    if kind not in ARCHITECTURES:
        raise ValueError(f"{unknown_name('network', kind, ARCHITECTURES)}; {BRIDGE}")
    architecture = ARCHITECTURES[kind]
    name, process = _read_process(folder, parts, None if scheduler is None else Path(scheduler))
    config = {k: v for k, v in config.items() if k not in AVERAGE_SETTINGS}
    sides, network, time = architecture.read(_with_size(config, shape))
    if time != process.time:
        raise ValueError(
            f"{name} and this {kind} do not belong together: the network takes {TIMES[time]} and "
            f"the scheduler has {TIMES[process.time]}; give the config of the right one, by the "
            "option scheduler"
        )
    spec = ModelSpec(
        sides, network, process.path, process.parametrization, process.t_min, process.t_max
    )
    autoencoder_spec = _read_autoencoder_spec(parts.autoencoder, sides)
    texts, text_notes = _read_texts(parts, network, autoencoder_spec, sides)
    abstract = _abstract(spec)  # refuses a config before weights are downloaded
    network, arrays = architecture.share(network, weights(parts.weights))
    if network != spec.network:
        spec = replace(spec, network=network)
        abstract = _abstract(spec)
    loaded = load_state_dict(
        abstract,
        arrays,
        f"the {kind} in {parts.network}",
        renames=architecture.renames,
        constants=architecture.constants(sides, network),
    )
    autoencoder = None
    if parts.autoencoder is not None:
        autoencoder = load_state_dict(
            nnx.eval_shape(lambda: build_autoencoder(autoencoder_spec, sides)),
            weights(parts.autoencoder),
            f"the autoencoder in {parts.autoencoder}",
            renames=RENAMES,
        )
    prompts = None if texts is None else load_text(texts, weights)
    meta = Meta(
        model=spec,
        dataset="not stated",
        data_range=process.data_range,
        licence=licence or card_licence(folder) or "not stated",
        steps=0,
        source=source or str(folder),
        autoencoder=autoencoder_spec,
        labels=_read_labels(parts.pipeline, network.get("num_classes")),
        text={} if texts is None else texts.spec,
    )
    notes = (
        *parts.notes,
        *process.notes,
        *text_notes,
        *_size_notes(config, sides, autoencoder is None),
        *_scale_notes(parts.autoencoder),
    )
    return Imported(build(spec, loaded), autoencoder, meta, kind, name, notes, prompts)


def _abstract(spec: ModelSpec) -> Any:
    """Return the network without numbers in its weights."""
    return nnx.eval_shape(lambda: build_network(spec))


def _with_size(config: Mapping[str, Any], shape: tuple[int, ...] | None) -> Mapping[str, Any]:
    """Return the config with another size of the samples."""
    if shape is None:
        return config
    kind = str(config.get("_class_name"))
    if kind not in SIZES:
        raise ValueError(f"{kind} works at the size of its config only: leave out shape")
    return {**config, SIZES[kind]: list(shape)}


def _size_notes(config: Mapping[str, Any], shape: tuple[int, ...], pixels: bool) -> list[str]:
    found = []
    stated = config.get("sample_size")
    if stated is not None and list(shape[:2]) != np.broadcast_to(stated, 2).tolist():
        found.append(f"the config has sample_size {stated}, and {shape[0]} x {shape[1]} was given")
    if pixels and shape[-1] not in (1, 3):
        found.append(f"samples of {shape[-1]} channels are no pictures: they are arrays alone")
    return found


def _scale_notes(autoencoder: Path | None) -> tuple[str, ...]:
    """Return a note where the scale of the latents is a default that may be wrong."""
    config = {} if autoencoder is None else read_json(autoencoder / "config.json")
    if config.get("_class_name") != "VQModel" or "scaling_factor" in config:
        return ()
    return (
        "the config of the VQModel has no scaling_factor, and 0.18215 is taken as in diffusers; "
        "the first such models had 1: if the pictures are wrong, add scaling_factor to it",
    )


def _read_labels(index: Mapping[str, Any], classes: int | None) -> tuple[str, ...]:
    """Return the names of the classes, or none unless the pipeline names every class."""
    names = index.get("id2label")
    if classes is None or not isinstance(names, dict):
        return ()
    found = [names.get(str(label)) for label in range(classes)]
    return tuple(map(str, found)) if None not in found else ()


def _read_autoencoder_spec(folder: Path | None, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the pipeline's autoencoder as `dgjax.checkpoints.Meta` describes it."""
    if folder is None:
        return dict(PIXELS)
    spec, inside = read_autoencoder(read_json(folder / "config.json"))
    if inside != shape[-1]:
        raise ValueError(
            f"the autoencoder in {folder} has latents of {inside} channels and the network takes "
            f"{shape[-1]}: they do not belong together"
        )
    return spec


def _read_texts(
    parts: Parts,
    network: Mapping[str, Any],
    autoencoder: Mapping[str, Any],
    shape: tuple[int, ...],
) -> tuple[TextParts | None, tuple[str, ...]]:
    """Return the pipeline's text encoders, or None and a note if there are none."""
    prompted = PROMPTED.get(network["kind"])
    names = [one.name for one, _ in parts.texts]
    kind = parts.pipeline.get("_class_name")
    if not names:
        return None, (NO_TEXT,) if prompted else ()
    if unknown := [name for name in names if prompted is None or name not in prompted.encoders]:
        raise ValueError(
            f"the pipeline {kind} has a part {unknown[0]!r} ({parts.pipeline[unknown[0]][-1]}), "
            f"and its network takes no prompts here; {BRIDGE}"
        )
    assert prompted is not None
    for one, other in parts.texts:
        if not any(parts.pipeline.get(other.name) or ()):
            raise ValueError(f"the pipeline {kind} has a part {one.name!r} and no {other.name!r}")
    needed = [name for name in prompted.encoders if name not in prompted.optional]
    if missing := [name for name in needed if name not in names]:
        left_out = f"left out: {' and '.join(names)}, as there is no {' and no '.join(missing)}"
        return None, (left_out, NO_TEXT)
    scale = 1
    if autoencoder["kind"] != PIXELS["kind"]:
        scale = 2 ** (len(autoencoder["channels"]) - 1)
    size = (scale * shape[0], scale * shape[1])
    return read_text(parts.pipeline, parts.texts, network, size), ()


def _read_process(folder: Path, parts: Parts, scheduler: Path | None) -> tuple[str, Process]:
    """Return class and process of the given scheduler, or of the one in the folder."""
    file = parts.scheduler if scheduler is None else scheduler
    if file is None:
        above = folder.absolute().parent
        whole = (above / "model_index.json").is_file()
        first = f"import {above}, to which it belongs, or " if whole else ""
        raise ValueError(
            f"{folder} has no scheduler/scheduler_config.json, which says how much noise the "
            f"network was trained on: {first}give the scheduler's config, by the option scheduler"
        )
    if (file / "scheduler" / SCHEDULER).is_file():  # a whole pipeline
        file = file / "scheduler"
    config = read_json(file / SCHEDULER if file.is_dir() else file)
    return str(config.get("_class_name")), read_scheduler(config)
