"""Import NCSN++ and DDPM++ of score_sde (arXiv 2011.13456), of its JAX and its PyTorch program."""

import math
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dgjax.checkpoints.configuration import unknown_name
from dgjax.checkpoints.meta import PIXELS, Meta
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from dgjax.importing import score_sde_files
from dgjax.importing.model_folder import Imported, card_licence
from dgjax.importing.run_settings import Settings, choice, find_settings, integer, sides, switch
from dgjax.importing.score_sde_files import Modules, chosen_file, open_score_sde
from dgjax.importing.score_sde_published import PUBLISHED
from dgjax.importing.score_sde_structure import Structure, name_weights, read_structure
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.weights import StoredArray

__all__ = ["import_score_sde", "is_score_sde"]

SETTINGS = (
    *("config", "sde", "continuous", "centered", "image_size", "fir", "attn_resolutions"),
    *("beta_min", "beta_max", "sigma_min", "sigma_max", "num_scales", "eps"),
)
SDES = {"vpsde": "vp", "subvpsde": "sub_vp", "vesde": "ve"}
# Least time of the model. Below it the noise of the sub-VP path is lost in float32.
LEAST = {"vpsde": 1e-5, "subvpsde": 1e-3, "vesde": 1e-5}
# The network's time at t = 1, where its noise levels are no indices.
LABELS = 999.0
WIDE, NARROW = [1, 3, 3, 1], [1, 1]


def is_score_sde(path: str | os.PathLike) -> bool:
    """Return whether a file, or the only file of a folder, is a checkpoint of score_sde."""
    return score_sde_files.is_score_sde(Path(path))


def import_score_sde(
    path: str | os.PathLike,
    *,
    shape: tuple[int, ...] | None = None,
    licence: str | None = None,
    source: str = "",
) -> Imported:
    """Import a network of score_sde.

    The moving average of the weights is taken. What weights do not tell is the name of the
    configuration of the training, as `config` in a file beside the weights (called like theirs with
    the ending .json or .yaml, or config.json), or in the path of the file, as in
    "vp/cifar10_ddpmpp_continuous/checkpoint_8.pth". For a configuration that is not published the
    same file has the settings themselves, by their names in score_sde.

    Args:
        path: a checkpoint of PyTorch (.pth) or of Flax (checkpoint_N), or a folder with one.
        shape: (H, W) of the images; unless given, `image_size` of the settings.
        licence: licence of the model in one line; unless given, that of the model card.
        source: where the model came from, for the record; unless given, the path.

    Returns:
        The model, of images in [-1, 1].

    Raises:
        ValueError: if something is missing, damaged, not supported or contradicts the weights; the
            message says what to do.
    """
    file = chosen_file(Path(path))
    if file is None:
        raise ValueError(f"{path} is no checkpoint of score_sde: give a file .pth or checkpoint_N")
    modules = open_score_sde(file)
    what = f"the network of score_sde in {file}"
    structure = read_structure(modules, what)
    settings, notes = _settings(file, structure)
    height, width = sides(settings, shape)
    size = (height, width, structure.channels)
    resolutions = settings.values.get("attn_resolutions", [16])
    if not isinstance(resolutions, list | tuple):
        raise ValueError(f"attn_resolutions in {settings.place} must be a list of heights")
    attention = [height >> level in resolutions for level in range(len(structure.widths))]
    arrays = name_weights(modules, structure, attention, what)
    process, more = _process(settings, structure, modules)
    if SDES[settings.values["sde"]] == "ve":
        arrays = _negative_output(arrays)
    network = {
        "kind": "song_unet",
        "model_channels": structure.base,
        "channel_mult": [_multiple(n, structure.base, what) for n in structure.widths],
        "channel_mult_emb": _multiple(structure.embedding, structure.base, what),
        "channel_mult_noise": 2 if structure.fourier else 1,
        "num_blocks": structure.blocks,
        "attn_resolutions": [height >> i for i, attend in enumerate(attention) if attend],
        "embedding_type": "fourier" if structure.fourier else "positional",
        "encoder_type": structure.encoder,
        "decoder_type": structure.decoder,
        "resample_filter": WIDE if _smooth(settings, structure) else NARROW,
    }
    spec = ModelSpec(size, network, **process)
    like = nnx.eval_shape(lambda: build_network(spec))
    loaded = load_state_dict(like, arrays, what)
    if "attn_resolutions" not in settings.values:
        notes.append("attn_resolutions is not stated, and taken as in all that are published: [16]")
    if not modules.averaged:
        notes.append(
            "there is no moving average (EMA) in the file: the weights themselves are read"
        )
    meta = Meta(
        model=spec,
        dataset="not stated",
        data_range=(-1.0, 1.0),
        licence=licence or card_licence(file.parent) or "not stated",
        steps=0,
        source=source or str(file),
        autoencoder=dict(PIXELS),
    )
    name = "NCSN++" if structure.fourier or network["resample_filter"] == WIDE else "DDPM++"
    sde = str(settings.values["sde"])
    return Imported(build(spec, loaded), None, meta, name, sde, (*notes, *more))


def _settings(file: Path, structure: Structure) -> tuple[Settings, list[str]]:
    """Return the settings of a checkpoint, with those of a published configuration, and notes."""
    given = find_settings(file, SETTINGS)
    values, notes = given.values, []
    name = values.get("config")
    if name is None:
        parts = [*file.parts[:-1], file.stem]
        pairs = [f"{a}/{b}" for a, b in pairwise(parts)]
        found = [name for name in PUBLISHED if name in pairs]
        if not found and structure.fourier:  # of which all that are published are of one SDE
            found = [name for name in PUBLISHED if name.startswith("ve/") and name[3:] in parts]
        if found:
            name = found[-1]
            notes.append(f"read as {name}, which the path of the file says")
    if name is not None and name not in PUBLISHED:
        raise unknown_name(f"config in {given.place}", str(name), list(PUBLISHED))
    settings = Settings({**PUBLISHED.get(str(name), {}), **values}, given.place)
    missing = [key for key in ("sde", "continuous") if key not in settings.values]
    if structure.fourier and missing == ["continuous"]:
        settings.values["continuous"], missing = True, []
    if missing:
        raise ValueError(
            f"{file} is a checkpoint of score_sde, whose weights do not tell its SDE: add "
            f'"config" to {given.place}, the name of the configuration of its training (such as '
            f'"{next(iter(PUBLISHED))}"), or "sde" (one of {", ".join(SDES)}), "continuous" and '
            '"image_size"'
        )
    choice(settings, "sde", SDES)
    return settings, notes


def _smooth(settings: Settings, structure: Structure) -> bool:
    """Return whether changes of resolution are smoothed."""
    stated = switch(settings, "fir")
    if structure.encoder == "residual":  # whose convolutions have their names from the filter
        if stated is False:
            raise ValueError(f"{settings.place} has fir = False, and the weights are of fir = True")
        return True
    if stated is None:
        raise ValueError(
            f'weights do not tell how images are resampled: add "fir" to {settings.place} (true '
            "for NCSN++, false for DDPM++)"
        )
    return stated


def _process(
    settings: Settings, structure: Structure, modules: Modules
) -> tuple[dict[str, Any], list[str]]:
    """Return path, parametrization, clock and times for a `ModelSpec`, and notes."""
    sde, continuous = settings.values["sde"], switch(settings, "continuous")
    least = _number(settings, "eps", LEAST[sde])
    centered = switch(settings, "centered")
    if sde == "vesde":
        return _exploding(settings, structure, modules, bool(continuous), bool(centered), least)
    if structure.fourier:
        raise ValueError(
            f"{settings.place} has sde = {sde}, and the network takes the logarithm of its time "
            f"(embedding_type = fourier), as none that is published: {'dgjax.torch_network'} takes "
            "it as it is"
        )
    if centered is False:
        raise ValueError(
            f"{settings.place} has centered = False with sde = {sde}: only data in [-1, 1] are read"
        )
    low, high = _number(settings, "beta_min", 0.1), _number(settings, "beta_max", 20.0)
    spec: dict[str, Any] = {"parametrization": {"kind": "noise"}}
    if continuous or sde == "subvpsde":
        path = {"kind": SDES[sde], "beta_min": low, "beta_max": high}
        spec |= {"path": path, "t_min": least, "t_max": 1.0}
        return {**spec, "clock": {"rate": LABELS, "offset": 0.0}}, []
    count = integer(settings, "num_scales", 1000)
    betas = np.linspace(low / count, high / count, count)
    path = {"kind": "discrete_time", "alphas_cumprod": np.cumprod(1 - betas).tolist()}
    return {**spec, "path": path, "t_min": 0.0, "t_max": count - 1.0}, []


def _exploding(
    settings: Settings,
    structure: Structure,
    modules: Modules,
    continuous: bool,
    centered: bool,
    least: float,
) -> tuple[dict[str, Any], list[str]]:
    """Return the process of a variance-exploding network.

    Its output, divided by sigma, is the score: the predicted noise but for the sign. Data are in
    [0, 1] there unless `centered`, and the network itself doubles them and their noise.
    """
    levels = modules.sigmas
    stored = {} if levels is None else {"sigma_min": levels.min(), "sigma_max": levels.max()}
    sigma: dict[str, float] = {}
    for key in ("sigma_min", "sigma_max"):
        default = stored.get(key, 0.01 if key == "sigma_min" else math.nan)
        sigma[key] = _number(settings, key, float(f"{default:.9g}"))  # stored as exp(log(sigma))
        if math.isnan(sigma[key]):
            raise ValueError(
                f'weights do not tell the largest noise: add "{key}" to {settings.place}'
            )
        if not math.isclose(sigma[key], stored.get(key, sigma[key]), rel_tol=1e-4):
            raise ValueError(
                f"{settings.place} has {key} = {sigma[key]:g}, and the file {stored[key]:g}"
            )
    low, high = sigma["sigma_min"], sigma["sigma_max"]
    scale = 1.0 if centered else 2.0
    if structure.fourier != continuous:
        raise ValueError(
            f"{settings.place} has continuous = {continuous}, and the network takes "
            f"{'any noise level' if structure.fourier else 'the index of its noise level'}"
        )
    if continuous:  # the network takes log(sigma)
        clock = {"rate": math.log(high / low), "offset": math.log(low)}
    else:  # it takes the index in a list that falls from sigma_max
        count = len(levels) if levels is not None else integer(settings, "num_scales", 1000)
        clock = {"rate": 1.0 - count, "offset": count - 1.0}
    spec = {
        "path": {"kind": "ve", "sigma_min": scale * low, "sigma_max": scale * high},
        "parametrization": {"kind": "noise"},
        "clock": clock,
        "t_min": least if continuous else 0.0,
        "t_max": 1.0,
    }
    return spec, [] if centered else [
        "data in [0, 1] there are in [-1, 1] here, with twice the noise"
    ]


def _negative_output(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of the network whose output has the other sign."""

    def negative(array: Any) -> StoredArray:
        return StoredArray(tuple(array.shape), array.dtype, lambda: -np.asarray(array))

    return {name: negative(a) if ".aux_conv." in name else a for name, a in arrays.items()}


def _number(settings: Settings, key: str, default: float) -> float:
    value = settings.values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} in {settings.place} must be a number, got {value!r}")
    return float(value)


def _multiple(size: int, base: int, what: str) -> int:
    if size % base:
        raise ValueError(f"{what} has {size} channels, which are no multiple of its {base}")
    return size // base
