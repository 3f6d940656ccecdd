"""Find the parts of a model that diffusers saved: network, autoencoder, texts and scheduler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dgjax.importing.model_folder import read_json

__all__ = ["BRIDGE", "Parts", "find_parts", "is_diffusers"]

BRIDGE = "dgjax.torch_network takes its network as it is"
NETWORKS = ("unet", "transformer")  # names of the network in pipelines
AUTOENCODERS = ("vae", "vqvae")
TEXTS = {
    "text_encoder": "tokenizer",
    "text_encoder_2": "tokenizer_2",
    "text_encoder_3": "tokenizer_3",
}
# They look at pictures before or after sampling, and are no part of the model.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
OTHER_PARTS = ("scheduler", *AUTOENCODERS, *TEXTS, *TEXTS.values(), *LEFT_OUT)
AVERAGE = "unet_ema"  # in the folders of training runs, beside the last weights in `unet`
SCHEDULER = "scheduler_config.json"
ALONE = (
    "a network alone is read as one of images from -1 to 1: if it was trained on latents, import "
    "the folder of its pipeline, with the autoencoder"
)


class Parts(NamedTuple):
    """Where the parts of a model are.

    Attributes:
        pipeline: the content of model_index.json; empty for a network alone.
        network: the network's folder.
        weights: file or folder of the network's weights.
        autoencoder: the autoencoder's folder, or None for a model without one.
        scheduler: the scheduler's config, or None if there is none.
        texts: the folders of each text encoder and its tokenizer.
        notes: lines on how the parts were chosen.
    """

    pipeline: Mapping[str, Any]
    network: Path
    weights: Path
    autoencoder: Path | None
    scheduler: Path | None
    texts: tuple[tuple[Path, Path], ...] = ()
    notes: tuple[str, ...] = ()


def is_diffusers(path: Path) -> bool:
    """Return whether a path is a model that diffusers saved, judged by its configs.

    Args:
        path: folder of a pipeline, of a network or of a training run; or a file of weights in the
            folder of a network.

    Raises:
        ValueError: if config.json is damaged.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and (path / "model_index.json").is_file():
        return True
    configs = [folder / "config.json"]
    configs += [folder / part / "config.json" for part in (*NETWORKS, AVERAGE) if path.is_dir()]
    return any(file.is_file() and "_class_name" in read_json(file) for file in configs)


def find_parts(path: Path) -> Parts:
    """Find the parts of a model.

    Args:
        path: as of `is_diffusers`.

    Returns:
        The parts.

    Raises:
        ValueError: if it is a pipeline with another number of networks than one or with a part
            that is not supported; or the network alone of a pipeline of latents.
    """
    if not path.exists():
        raise ValueError(f"there is no folder {path}")
    folder = path if path.is_dir() else path.parent
    if (folder / "model_index.json").is_file():
        return _of_pipeline(folder, read_json(folder / "model_index.json"))
    if not (folder / "config.json").is_file():
        return _of_run(folder)
    whole = folder.parent / "model_index.json"
    index = read_json(whole) if whole.is_file() else {}
    if any(any(index.get(part) or ()) for part in AUTOENCODERS):
        raise ValueError(
            f"{folder} is the network of a pipeline of latents, which needs its autoencoder: "
            f"import {folder.parent}"
        )
    return Parts({}, folder, path, None, _existing(folder / SCHEDULER), notes=(ALONE,))


def _of_pipeline(folder: Path, index: Mapping[str, Any]) -> Parts:
    kind = index.get("_class_name")
    for part, value in index.items():
        if part not in (*NETWORKS, *OTHER_PARTS) and isinstance(value, list) and any(value):
            raise ValueError(
                f"the pipeline {kind} has a part {part!r} ({value[-1]}), which is not supported, "
                f"and without which it would be another model; {BRIDGE}"
            )
    found = [part for part in NETWORKS if part in index]
    if len(found) != 1:
        raise ValueError(
            f"the pipeline {kind} has {len(found)} networks called {' or '.join(NETWORKS)}, and "
            "only pipelines with one are supported"
        )
    inside = folder / found[0]
    network = inside if inside.is_dir() else folder  # the oldest ones have no folders
    autoencoders = [folder / part for part in AUTOENCODERS if any(index.get(part) or ())]
    scheduler = folder / "scheduler"
    texts = [(one, other) for one, other in TEXTS.items() if any(index.get(one) or ())]
    left_out = [part for part in LEFT_OUT if any(index.get(part) or ())]
    return Parts(
        index,
        network,
        network,
        autoencoders[0] if autoencoders else None,
        _existing((scheduler if scheduler.is_dir() else folder) / SCHEDULER),
        tuple((folder / encoder, folder / tokenizer) for encoder, tokenizer in texts),
        (f"left out, as no part of the model: {', '.join(left_out)}",) if left_out else (),
    )


def _of_run(folder: Path) -> Parts:
    """Return the parts in the folder of a training run, which has no index."""
    found = [name for name in (AVERAGE, *NETWORKS) if (folder / name / "config.json").is_file()]
    if not found:
        raise ValueError(f"there is no config.json in {folder}")
    network = folder / found[0]
    choice = (f"of {' and '.join(found)} the first is read",) if len(found) > 1 else ()
    scheduler = _existing(folder / "scheduler" / SCHEDULER)
    return Parts({}, network, network, None, scheduler, notes=(*choice, ALONE))


def _existing(file: Path) -> Path | None:
    return file if file.is_file() else None
