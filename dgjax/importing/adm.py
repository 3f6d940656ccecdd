"""Import OpenAI's U-Net: improved-diffusion, guided-diffusion (ADM), torchcfm, flow_matching.

The structure of the network is read from the names and shapes of its weights. What they do not tell
is in a small file beside them: the size of the images, the heads of the attention, the process.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dgjax.checkpoints.meta import Meta
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from dgjax.importing.adm_published import PUBLISHED
from dgjax.importing.adm_structure import AdmStructure, read_structure, split_attention
from dgjax.importing.model_folder import Imported, card_licence
from dgjax.importing.run_processes import DIFFUSION, RunProcess, diffusion, flow_to_data
from dgjax.importing.run_settings import Settings, choice, find_settings, integer, sides, switch
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.weights import open_weights, training_run

__all__ = ["import_adm", "is_adm"]

# Weights that every network of this kind has, with the classifiers.
SIGNS = ("input_blocks.0.0.weight", "time_embed.0.weight", "time_embed.2.weight")
PROCESSES = ("diffusion", "flow_matching")
COUPLINGS = ("independent", "optimal_transport")
SETTINGS = (
    *("image_size", "num_heads", "num_head_channels", "num_heads_upsample"),
    *("use_new_attention_order", "process", "coupling", "sigma", "num_classes", *DIFFUSION),
)
# Settings that the weights tell, too.
STATED = {
    "num_channels": "time_features",
    "model_channels": "time_features",
    "num_res_blocks": "layers_per_block",
    "use_scale_shift_norm": "scale_shift",
}
OTHERS = ("in_channels", "out_channels", "class_cond", "learn_sigma", "resblock_updown")
MORE = ("conv_resample", "large_size", "small_size", "discrete_flow_matching")


def is_adm(path: str | os.PathLike) -> bool:
    """Return whether a file, or the only weights of a folder, are of OpenAI's U-Net, by names."""
    try:
        return all(name in _unwrapped(open_weights(path)) for name in SIGNS)
    except ValueError:
        return False


def import_adm(
    path: str | os.PathLike,
    *,
    shape: tuple[int, ...] | None = None,
    licence: str | None = None,
    source: str = "",
    weights: Callable[[Path], Mapping[str, Any]] = open_weights,
) -> Imported:
    """Import a network of improved-diffusion, guided-diffusion (ADM), torchcfm or flow_matching.

    What the weights do not tell is read from a file beside them, called like theirs with the ending
    .json or .yaml, or config.json: `image_size`, `num_heads` or `num_head_channels`, and the
    process, by `noise_schedule` or by `process`. The names are those of the programs' flags. The
    models that OpenAI published are known by the names of their files.

    Args:
        path: file of weights, or a folder with one such file.
        shape: (H, W) of the images, in place of `image_size`.
        licence: licence of the model in one line; unless given, that of the model card.
        source: where the model came from, for the record; unless given, the path.
        weights: opens the weights of a file or folder.

    Returns:
        The model, without an autoencoder.

    Raises:
        ValueError: if something is missing, damaged, not supported or contradicts the weights; the
            message says what to do.
    """
    path = Path(path)
    what = f"the U-Net in {path}"
    raw = weights(path)
    arrays = _unwrapped(raw)
    _refuse_others(arrays, what)
    structure = read_structure(arrays, what)
    _refuse_inputs(structure, what)
    settings, known = _settings(path, structure)
    notes = [*_table_notes(path, raw), *known]
    _check_stated(settings, structure)
    heads, head_notes = _heads(settings)
    classes, class_notes = _classes(settings, structure, arrays)
    process = _process(path, settings)
    notes += [*head_notes, *class_notes, *process.notes]
    if structure.outputs == 2 * structure.channels:
        notes.append("the learned variance is left out: a density has no use for it")
    size = (*sides(settings, shape), structure.channels)
    network = {**structure.network, **heads, **classes}
    spec = ModelSpec(size, network, **process.spec)
    named = split_attention(
        arrays,
        structure,
        lambda channels: heads["attention_heads"] or channels // heads["attention_head_dim"],
        switch(settings, "use_new_attention_order") or False,
    )
    loaded = load_state_dict(nnx.eval_shape(lambda: build_network(spec)), named, what)
    meta = Meta(
        model=spec,
        dataset="not stated",
        data_range=(-1.0, 1.0),
        licence=licence or card_licence(path if path.is_dir() else path.parent) or "not stated",
        steps=0,
        source=source or str(path),
    )
    model = build(spec, loaded)
    return Imported(model, None, meta, "UNetModel", process.name, tuple(notes))


def _unwrapped(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the averaged weights of flow_matching's wrapper, others as they are."""
    last = [name for name in weights if name.startswith("model.")]
    averaged = [name for name in weights if name.startswith("shadow_params.")]
    if not last or len(last) != len(averaged):
        return weights
    # The wrapper counts the averages in the order of the network's weights.
    ordered = sorted(averaged, key=lambda name: int(name.rpartition(".")[2]))
    pairs = list(zip(last, ordered, strict=True))
    if any(weights[name].shape != weights[mean].shape for name, mean in pairs):
        raise ValueError(
            "averaged weights (shadow_params) are counted in the order of a file of PyTorch, and "
            "this file has another order: import the original file"
        )
    return {name.removeprefix("model."): weights[mean] for name, mean in pairs}


def _table_notes(path: Path, raw: Mapping[str, Any]) -> list[str]:
    if any(name.startswith("shadow_params.") for name in raw):
        return ["the averaged weights are read (shadow_params)"]
    tables, _ = training_run(path)
    return [f"of {' and '.join(tables)} the first is read"] if len(tables) > 1 else []


def _refuse_others(arrays: Mapping[str, Any], what: str) -> None:
    if any("transformer_blocks" in name for name in arrays):
        raise ValueError(
            f"{what} attends to a text or another sequence, and only networks without a condition "
            "or with class labels are imported: dgjax.torch_network takes it as it is"
        )
    if (
        not any(name.startswith("output_blocks.") for name in arrays)
        or "out.2.weight" not in arrays
    ):
        raise ValueError(
            f"{what} is half a U-Net, a classifier of noisy images: it has no density; import the "
            "diffusion model"
        )


def _refuse_inputs(structure: AdmStructure, what: str) -> None:
    channels, outputs = structure.channels, structure.outputs
    if outputs not in (channels, 2 * channels) or (channels, outputs) == (6, 6):
        raise ValueError(
            f"{what} takes {channels} channels and returns {outputs}: it is one for upsampling, "
            "which takes a small image, too, or has other inputs beside the noisy image; import "
            "the model that makes the small images, or take dgjax.torch_network"
        )


def _settings(path: Path, structure: AdmStructure) -> tuple[Settings, list[str]]:
    settings = find_settings(path, (*SETTINGS, *STATED, *OTHERS, *MORE))
    published = PUBLISHED.get(path.stem, {})
    if not published or any(
        published[key] != structure.network[STATED[key]] for key in published.keys() & STATED
    ):
        if not settings.values:
            raise ValueError(
                f"{path} is a U-Net of OpenAI's kind; its weights do not tell the size of the "
                "images, the heads of the attention and the process: write them to "
                f'{settings.place}, such as {{"image_size": 64, "num_heads": 4, "noise_schedule": '
                '"linear"}, or "process": "flow_matching" in place of the last for torchcfm and '
                "flow_matching"
            )
        return settings, []
    note = f"settings are those that OpenAI states for {path.stem}.pt"
    return settings._replace(values={**published, **settings.values}), [note]


def _check_stated(settings: Settings, structure: AdmStructure) -> None:
    """Raise a ValueError if a setting contradicts the weights, or is one that is not supported."""
    for key in ("large_size", "small_size"):
        if key in settings.values:
            raise ValueError(
                f"{settings.place} has {key}: a network for upsampling takes a small image, too, "
                "and is not imported"
            )
    read: dict[str, Any] = {key: structure.network[name] for key, name in STATED.items()}
    read |= {
        "in_channels": structure.channels,
        "out_channels": structure.outputs,
        "class_cond": structure.labels is not None,
        "learn_sigma": structure.outputs == 2 * structure.channels,
        "resblock_updown": structure.network["downsample_type"] == "resnet",
        "conv_resample": structure.network["downsample_type"] != "pool",
    }
    if len(structure.network["block_out_channels"]) == 1:  # no layers that change the resolution
        del read["resblock_updown"], read["conv_resample"]
    if settings.values.get("resblock_updown"):  # conv_resample is then not used
        read.pop("conv_resample", None)
    for key, value in read.items():
        if key in settings.values and settings.values[key] != value:
            raise ValueError(
                f"{settings.place} does not fit the weights: it has {key} = "
                f"{settings.values[key]!r}, they have {value!r}"
            )


def _heads(settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `UNet2D` for the heads of its attention."""
    values, notes = settings.values, []
    if "num_heads" not in values and "num_head_channels" not in values:
        raise ValueError(
            "weights do not tell the heads of the attention: add "
            f'"num_heads" or "num_head_channels" to {settings.place}'
        )
    if values.get("num_heads_upsample", values.get("num_heads")) != values.get("num_heads"):
        raise ValueError("other heads on the way up (num_heads_upsample) are not supported")
    if "num_head_channels" in values:
        found = {"attention_head_dim": integer(settings, "num_head_channels", 1)}
        found["attention_heads"] = None  # type: ignore[assignment]
    else:
        found = {"attention_heads": integer(settings, "num_heads", 1)}
        found["attention_head_dim"] = None  # type: ignore[assignment]
    if switch(settings, "use_new_attention_order") is None and found["attention_heads"] != 1:
        notes.append(
            "no setting use_new_attention_order: false is taken, the default of these programs"
        )
    return found, notes


def _classes(
    settings: Settings, structure: AdmStructure, arrays: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `UNet2D` for its labels.

    flow_matching has one more row for no class, which stays 0 in training.
    """
    rows = structure.labels
    if rows is None:
        return {}, []
    last = np.asarray(arrays["label_emb.weight"])[-1]
    stated = settings.values.get("num_classes")
    if stated is not None and stated not in (rows, rows - 1):
        raise ValueError(
            f"{settings.place} does not fit the weights: it has num_classes = {stated!r}, and they "
            f"have {rows} labels"
        )
    if rows > 1 and (stated == rows - 1 or (stated is None and not last.any())):
        return {"num_classes": rows - 1, "no_class": True}, [
            f"of {rows} labels the last is for no class"
        ]
    return {"num_classes": rows}, []


def _process(path: Path, settings: Settings) -> RunProcess:
    values = settings.values
    if "process" not in values and any(key in values for key in DIFFUSION):
        return diffusion(settings)
    if "process" not in values:
        raise ValueError(
            "weights do not tell in which process the network was trained: add "
            f'"noise_schedule" (linear or cosine) to {settings.place}, or for torchcfm and '
            'flow_matching "process": "flow_matching"'
        )
    if choice(settings, "process", dict.fromkeys(PROCESSES)) == "diffusion":
        return diffusion(settings)
    if values.get("discrete_flow_matching"):
        raise ValueError(f"{path} is a flow of discrete data, which has no density")
    if values.get("sigma"):
        raise ValueError(
            f"a flow with more noise, sigma = {values['sigma']!r}, is not supported: only 0 is"
        )
    coupled = re.search(r"ot-?cfm|sb-?cfm", path.name.lower())
    default = "optimal_transport" if coupled else "independent"
    coupling = choice(settings, "coupling", dict.fromkeys(COUPLINGS), default)
    if coupling != "independent":
        raise ValueError(
            f"{path} was trained with noise and data coupled by optimal transport: its velocity "
            'does not tell the score; to take it as that of independent noise, add "coupling": '
            f'"independent" to {settings.place}'
        )
    found = flow_to_data()
    note = (
        "noise is taken as independent of data in training: with optimal transport (OT-CFM) the "
        "velocity would not tell the score"
    )
    return found._replace(notes=(*found.notes, note))
