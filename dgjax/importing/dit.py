"""Import diffusion transformers by the names of their weights: DiT, SiT and REPA.

The three have one network and three processes. DiT predicts noise at 1000 time steps. SiT is a flow
with data at time 1, REPA one with data at time 0.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dgjax.checkpoints.configuration import unknown_name
from dgjax.checkpoints.meta import PIXELS, Meta
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from dgjax.importing.autoencoder_folder import import_autoencoder
from dgjax.importing.diffusers_dit import stored_positions
from dgjax.importing.model_folder import Imported, card_licence
from dgjax.importing.run_processes import (
    DIFFUSION,
    RunProcess,
    diffusion,
    flow_to_data,
    flow_to_noise,
)
from dgjax.importing.run_settings import Settings, choice, find_settings, integer
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.weights import StoredArray, open_weights, training_run

__all__ = ["import_dit", "is_dit"]

SIGNS = (
    "x_embedder.proj.weight",
    "t_embedder.mlp.0.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.adaLN_modulation.1.weight",
    "final_layer.linear.weight",
)
SETTINGS = (
    *("model", "num_heads", "num_classes", "path_type", "prediction", "autoencoder", "proj_coeff"),
    *DIFFUSION,
)
OTHERS = ("image_size", "resolution", "enc_type", "qk_norm", "cfg_prob", "vae", "learn_sigma")
FAMILIES = ("DiT", "SiT", "REPA")
# Attention heads of the published sizes, by blocks and length of a token.
HEADS = {(28, 1152): 16, (24, 1024): 16, (12, 768): 12, (12, 384): 6}
# By SiT's and REPA's names, those of a `ModelSpec`.
SIT_PATHS = {"Linear": "rectified_flow", "GVP": "cosine", "VP": "vp"}
SIT_PREDICTIONS = {"velocity": "velocity", "noise": "noise", "score": "score"}
REPA_PATHS = {"linear": "rectified_flow", "cosine": "cosine"}
# diffusers' names, which `dgjax.networks.DiT` has.
RENAMES = (
    (r"^t_embedder\.mlp\.0\.", "emb.timestep_embedder.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "emb.timestep_embedder.linear_2."),
    (r"^y_embedder\.", "emb.class_embedder."),
    (r"^x_embedder\.", "pos_embed."),
    (r"^pos_embed$", "pos_embed.pos_embed"),
    (r"^blocks\.", "transformer_blocks."),
    (r"\.adaLN_modulation\.1\.", ".norm1.linear."),
    (r"^final_layer\.norm1\.linear\.", "proj_out_1."),
    (r"^final_layer\.linear\.", "proj_out_2."),
    (r"\.attn\.proj\.", ".attn1.to_out.0."),
    (r"\.attn\.(to_[qkv])\.", r".attn1.\1."),
    (r"\.mlp\.fc1\.", ".ff.net.0.proj."),
    (r"\.mlp\.fc2\.", ".ff.net.2."),
)


def is_dit(path: str | os.PathLike) -> bool:
    """Return whether a file, or the only weights of a folder, are of DiT, SiT or REPA, by names."""
    try:
        names = open_weights(path)
    except ValueError:
        return False
    return all(name in names for name in SIGNS)


def import_dit(
    path: str | os.PathLike,
    *,
    autoencoder: str | os.PathLike | None = None,
    licence: str | None = None,
    source: str = "",
    weights: Callable[[Path], Mapping[str, Any]] = open_weights,
) -> Imported:
    """Import a network of DiT, SiT or REPA.

    The names of the weights do not tell which of the three it is. The name of the file may, or
    `model` ("SiT-XL/2") of the settings: in a file beside the weights, called like theirs with the
    ending .json or .yaml, or config.json; or those of its training, inside the file. So do the
    settings `path_type` and `prediction`, which else are the programs' defaults.

    Args:
        path: file of weights, or a folder with one such file.
        autoencoder: folder of the autoencoder of the latents as diffusers saves it, or its name on
            the Hugging Face hub; unless given, the folder that the settings name as `autoencoder`.
        licence: licence of the model in one line; unless given, that of the model card.
        source: where the model came from, for the record; unless given, the path.
        weights: opens the weights of a file or folder.

    Returns:
        The model, with its autoencoder if there is one.

    Raises:
        ValueError: if something is missing, damaged, not supported or contradicts the weights; the
            message says what to do.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    arrays = _in_one_row(weights(path))
    settings = find_settings(path, (*SETTINGS, *OTHERS))
    family, notes = _family(path, arrays, settings)
    what = f"the {family} in {path}"
    if heads := [name for name in arrays if name.startswith("projectors.")]:
        notes.append(
            f"{len(heads)} arrays of heads that only training has are left out (projectors)"
        )
    if any(name.endswith("attn.q_norm.weight") for name in arrays):
        raise ValueError(
            f"{what} has normalized queries and keys (qk_norm), which this network has not: "
            "dgjax.torch_network takes it as it is"
        )
    arrays = {name: array for name, array in arrays.items() if name not in heads}
    shape, network, more = _network(arrays, settings, what)
    process = _process(family, settings)
    tables, _ = training_run(path)
    if len(tables) > 1:
        notes.append(f"of {' and '.join(tables)} the first is read")
    spec = ModelSpec(shape, network, **process.spec)
    loaded = load_state_dict(
        nnx.eval_shape(lambda: build_network(spec)),
        _split(arrays),
        what,
        renames=RENAMES,
        constants=stored_positions(shape, network),
    )
    described, decoder = PIXELS, None
    named = settings.values.get("autoencoder")
    place = (folder / str(named) if named else None) if autoencoder is None else autoencoder
    if place is not None:
        described, decoder = import_autoencoder(place, shape)
    elif shape[-1] not in (1, 3):
        notes.append(
            f"samples of {shape[-1]} channels are latents, and no pictures without their "
            "autoencoder: give its folder as autoencoder"
        )
    meta = Meta(
        model=spec,
        dataset="not stated",
        data_range=(-1.0, 1.0),
        licence=licence or card_licence(folder) or "not stated",
        steps=0,
        source=source or str(path),
        autoencoder=dict(described),
    )
    notes = [*notes, *more, *process.notes]
    return Imported(build(spec, loaded), decoder, meta, family, process.name, tuple(notes))


def _in_one_row(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights with the blocks of older files of REPA, in two rows, counted in one."""
    first = {name.split(".")[1] for name in weights if name.startswith("blocks.")}

    def rename(name: str) -> str:
        if not name.startswith("decoder_blocks."):
            return name
        _, index, rest = name.split(".", 2)
        return f"blocks.{len(first) + int(index)}.{rest}"

    return {rename(name): array for name, array in weights.items()}


def _family(path: Path, arrays: Mapping[str, Any], settings: Settings) -> tuple[str, list[str]]:
    """Return which of `FAMILIES` it is, with a note if only the name of the file says so."""
    model = str(settings.values.get("model", ""))
    repa = "proj_coeff" in settings.values or any(n.startswith("projectors.") for n in arrays)
    if repa and not model.lower().startswith("dit"):
        return "REPA", []
    stated = [name for name in FAMILIES if model.lower().startswith(name.lower())]
    if stated:
        return stated[0], []
    if model:
        raise unknown_name(f"model in {settings.place}", model, FAMILIES)
    words = re.split(r"[^a-z]+", path.stem.lower())
    found = [name for name in FAMILIES if name.lower() in words]
    if not found:
        raise ValueError(
            f"{path} is a transformer of DiT, SiT or REPA, which have the same weights and other "
            f'processes: add "model" (DiT, SiT or REPA) to {settings.place}'
        )
    # A file of REPA is named by both.
    return found[-1], [f"read as {found[-1]}, which the name of the file says"]


def _network(
    arrays: Mapping[str, Any], settings: Settings, what: str
) -> tuple[tuple[int, ...], dict[str, Any], list[str]]:
    """Return the shape of a sample, the `network` of a `ModelSpec`, and notes."""
    size, channels, patch, _ = arrays["x_embedder.proj.weight"].shape
    depth = 1 + max(int(n.split(".")[1]) for n in arrays if n.startswith("blocks."))
    if "pos_embed" not in arrays:
        raise ValueError(f"{what} has no pos_embed, which tells the size of its samples")
    side = math.isqrt(tokens := arrays["pos_embed"].shape[1])
    if side * side != tokens:
        raise ValueError(f"{what} has {tokens} tokens, which make no square image")
    if "num_heads" in settings.values:
        heads = integer(settings, "num_heads", 1)
    elif (depth, size) in HEADS:
        heads = HEADS[depth, size]
    else:
        raise ValueError(
            f"{what} has {depth} blocks with tokens of length {size}, which is none of the "
            f'published sizes, so its heads are not known: add "num_heads" to {settings.place}'
        )
    if size % heads:
        raise ValueError(f"{heads} heads do not divide tokens of length {size}: {what}")
    rows = arrays["y_embedder.embedding_table.weight"].shape[0]
    if settings.values.get("num_classes", rows - 1) != rows - 1:
        raise ValueError(
            f"{settings.place} has num_classes = {settings.values['num_classes']}, and {what} "
            f"{rows} labels: one more than classes is expected, for no class"
        )
    outputs = arrays["final_layer.linear.weight"].shape[0] // patch**2
    network = {
        "kind": "dit",
        "patch_size": patch,
        "num_layers": depth,
        "num_attention_heads": heads,
        "attention_head_dim": size // heads,
        "num_classes": rows - 1,
        "out_channels": outputs,
        "norm_eps": 1e-6,
        "freq_shift": 0.0,  # diffusers' copy of DiT has 1
        "shared_embedding": True,
    }
    notes = [f"{rows - 1} classes; the last of {rows} labels is taken as that for no class"]
    if outputs == 2 * channels:
        notes.append("the learned variance is left out: a density has no use for it")
    return (side * patch, side * patch, channels), network, notes


def _process(family: str, settings: Settings) -> RunProcess:
    if family == "DiT":
        return diffusion(settings, "linear")
    if family == "REPA":
        predicts = choice(settings, "prediction", {"v": "velocity"}, "v")
        path = choice(settings, "path_type", REPA_PATHS, "linear")
        found = flow_to_noise(REPA_PATHS[path])
    else:
        path = choice(settings, "path_type", SIT_PATHS, "Linear")
        predicts = choice(settings, "prediction", SIT_PREDICTIONS, "velocity")
        found = flow_to_data(SIT_PATHS[path], SIT_PREDICTIONS[predicts])
    if {"path_type", "prediction"} <= settings.values.keys():
        return found
    note = f"path_type {path} and prediction {predicts} are taken, the defaults of {family}"
    return found._replace(notes=(*found.notes, note))


def _split(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Split queries, keys and values."""
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        if ".attn.qkv." in name:
            for i, letter in enumerate("qkv"):
                found[name.replace(".qkv.", f".to_{letter}.")] = _third(array, i)
        else:
            found[name] = array
    return found


def _third(array: Any, index: int) -> StoredArray:
    size = array.shape[0] // 3
    rows = slice(index * size, (index + 1) * size)
    return StoredArray((size, *array.shape[1:]), array.dtype, lambda: np.asarray(array)[rows])
