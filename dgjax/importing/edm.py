"""Import networks of EDM (arXiv 2206.00364): weights with a config.json beside them.

The structure of a network is read from the names and shapes of its weights. The config says in
which preconditioning the network was trained, and must not contradict the weights.
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
from dgjax.importing.edm_structure import read_structure
from dgjax.importing.model_folder import Imported, card_licence, read_json
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.weights import open_weights

__all__ = ["import_edm", "is_edm"]

KINDS = {"song_unet": "SongUNet", "dhariwal_unet": "DhariwalUNet"}
# Ignored: settings of training and sampling, which do not change the model.
IGNORED = {"dropout", "label_dropout", "use_fp16", "checkpoint_level", "epsilon_t", "M"}
# Least and greatest sigma of EDM's samplers, if a config has none.
SIGMA_RANGE, VE_SIGMA_RANGE = (0.002, 80.0), (0.02, 100.0)


def is_edm(folder: str | os.PathLike) -> bool:
    """Return whether a folder, or that of a file, holds a network of EDM, by its config.json.

    Raises:
        ValueError: if config.json is damaged.
    """
    file = _folder(Path(folder)) / "config.json"
    if not file.is_file():
        return False
    config = read_json(file)
    if config.get("precond") == "Precond":  # of EDM2, see `is_edm2`
        return False
    return config.get("model_type") in KINDS.values() or "precond" in config


def import_edm(
    folder: str | os.PathLike,
    *,
    autoencoder: str | os.PathLike | None = None,
    licence: str | None = None,
    source: str = "",
    weights: Callable[[Path], Mapping[str, Any]] = open_weights,
) -> Imported:
    """Import a network of EDM.

    Weights keep their precision, and are read one array at a time.

    Args:
        folder: folder with weights (see `open_weights`) and a config.json: `init_kwargs` of EDM's
            network, and its preconditioning as `precond`. Or a file of weights in such a folder.
        autoencoder: for a network of latents, the folder of its autoencoder as diffusers saves it,
            or its name on the Hugging Face hub; unless given, the folder that the config names as
            `autoencoder`, or `vae` if there is one. Latents are scaled as diffusers scales them.
        licence: licence of the model in one line; unless given, that of the model card.
        source: where the model came from, for the record; unless given, the folder.
        weights: opens the weights of a folder.

    Returns:
        The model, with its autoencoder if it is one of latents.

    Raises:
        ValueError: if something is missing, damaged, not supported or contradicts the weights; the
            message names it.
    """
    path, folder = Path(folder), _folder(Path(folder))
    config = dict(read_json(folder / "config.json"))
    what = f"the EDM network in {folder}"
    arrays = {name.removeprefix("model."): array for name, array in weights(path).items()}
    precond, process = _process(config)
    notes: tuple[str, ...] = ()
    if precond == "iDDPMPrecond" and (cut := _without_variance(arrays)):
        arrays, notes = cut, ("the learned variance is left out: a density has no use for it",)
    shape, network, renames, constants = read_structure(arrays, what)
    place = _autoencoder_folder(folder, config) if autoencoder is None else autoencoder
    _check_config(config, shape, network)
    spec = ModelSpec(shape, network, **process)
    like = nnx.eval_shape(lambda: build_network(spec))
    loaded = load_state_dict(like, arrays, what, renames=renames, constants=constants)
    described, decoder = dict(PIXELS), None
    if place is not None:
        described, decoder = import_autoencoder(place, shape)
    meta = Meta(
        model=spec,
        dataset="not stated",
        data_range=(-1.0, 1.0),
        licence=licence or card_licence(folder) or "not stated",
        steps=0,
        source=source or str(path),
        autoencoder=described,
    )
    return Imported(build(spec, loaded), decoder, meta, KINDS[network["kind"]], precond, notes)


def _autoencoder_folder(folder: Path, config: dict[str, Any]) -> Path | None:
    """Return the folder of the autoencoder; the setting that names it is removed from `config`."""
    named = config.pop("autoencoder", None)
    if named is None:
        return folder / "vae" if (folder / "vae").is_dir() else None
    if not isinstance(named, str):
        raise ValueError(f"autoencoder in config.json must be the name of a folder, got {named!r}")
    return folder / named


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _process(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the preconditioning's name and, for a `ModelSpec`, path, parametrization and range.

    The settings that are read are removed from `config`. The formulas are those of arXiv
    2206.00364, table 1.
    """
    precond = config.pop("precond", "EDMPrecond" if "sigma_data" in config else None)
    if precond is None:
        raise ValueError(
            "config.json does not say in which preconditioning the network was trained: add "
            '"precond", the name of the class of the pickled network, one of '
            + ", ".join(PROCESSES)
        )
    if precond not in PROCESSES:
        raise unknown_name("preconditioning", str(precond), list(PROCESSES))
    return precond, PROCESSES[precond](config)


def _sigma_range(config: dict[str, Any], least: float, most: float) -> dict[str, float]:
    """The range of sigma, with defaults where the config has no positive and finite number."""
    low, high = _number(config, "sigma_min", 0.0), _number(config, "sigma_max", math.inf)
    return {
        "t_min": low if low > 0 else least,
        "t_max": high if math.isfinite(high) else most,
    }


def _edm(config: dict[str, Any]) -> dict[str, Any]:
    data = _number(config, "sigma_data", 0.5)
    return {
        "path": {"kind": "edm"},
        "parametrization": {"kind": "preconditioned", "sigma_data": data},
        **_sigma_range(config, *SIGMA_RANGE),
    }


def _vp(config: dict[str, Any]) -> dict[str, Any]:
    # The network takes (M - 1) t and predicts the noise. The model's time is (M - 1) t, too, which
    # divides the slope of beta by (M - 1)^2 and its start by M - 1.
    slope, start = _number(config, "beta_d", 19.9), _number(config, "beta_min", 0.1)
    rate, first = _number(config, "M", 1000.0) - 1, _number(config, "epsilon_t", 1e-5)
    return {
        "path": {
            "kind": "vp",
            "beta_min": start / rate,
            "beta_max": start / rate + slope / rate**2,
        },
        "parametrization": {"kind": "noise"},
        "t_min": rate * first,
        "t_max": rate,
    }


def _ve(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": {"kind": "edm"},
        "parametrization": {"kind": "ve_preconditioned"},
        **_sigma_range(config, *VE_SIGMA_RANGE),
    }


def _iddpm(config: dict[str, Any]) -> dict[str, Any]:
    # The network takes the step, of which step M - 1 has the most noise, and predicts the noise of
    # x/sqrt(1 + sigma^2): a variance-preserving path that is known at the steps.
    count = int(_number(config, "M", 1000))
    least, offset = _number(config, "C_1", 0.001), _number(config, "C_2", 0.008)
    alpha_bar = np.sin(0.5 * np.pi * np.arange(count + 1) / count / (offset + 1)) ** 2
    sigma = np.zeros(count + 1)
    for j in range(count, 0, -1):
        ratio = max(alpha_bar[j - 1] / alpha_bar[j], least)
        sigma[j - 1] = np.sqrt((sigma[j] ** 2 + 1) / ratio - 1)
    return {
        "path": {
            "kind": "discrete_time",
            "alphas_cumprod": (1 / (1 + sigma[count - 1 :: -1] ** 2)).tolist(),
        },
        "parametrization": {"kind": "noise"},
        "t_min": 0.0,
        "t_max": count - 1.0,
    }


PROCESSES = {"EDMPrecond": _edm, "VPPrecond": _vp, "VEPrecond": _ve, "iDDPMPrecond": _iddpm}


def _without_variance(weights: Mapping[str, Any]) -> dict[str, Any] | None:
    """Cut the last convolution to the channels of the image; None if it has no others."""

    def matching(pattern):
        return [name for name in weights if re.fullmatch(pattern, name)]

    first = matching(r"enc\.(\d+)x\1_conv\.weight")
    last = matching(r"(out|dec\.(\d+)x\2_aux)_conv\.(weight|bias)")
    if not first:  # no network of EDM, which its structure will say
        return None
    channels = weights[first[0]].shape[1]
    if all(weights[name].shape[0] != 2 * channels for name in last):
        return None
    return {**weights, **{name: np.asarray(weights[name])[:channels] for name in last}}


def _number(config: dict[str, Any], key: str, default: float) -> float:
    value = config.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError(f"{key} in config.json must be a number, got {value!r}")
    return float(value)


def _check_config(
    config: Mapping[str, Any], shape: tuple[int, ...], network: dict[str, Any]
) -> None:
    """Raise a ValueError if a setting is unknown or contradicts the weights."""
    stated = {key: value for key, value in config.items() if key not in IGNORED}
    read = {
        **network,
        "model_type": KINDS[network["kind"]],
        "img_resolution": shape[0],
        "img_channels": shape[2],
        "in_channels": shape[2],
        "out_channels": shape[2],
        "label_dim": network["num_classes"] or 0,
        "augment_dim": network["augment_dim"] or 0,
    }
    del read["kind"], read["num_classes"]
    # A filter counts up to its sum, and a config may list resolutions that the network has not.
    if "resample_filter" in stated and "resample_filter" in read:
        stated["resample_filter"] = _normalized(stated["resample_filter"])
        read["resample_filter"] = _normalized(read["resample_filter"])
    if isinstance(stated.get("attn_resolutions"), list):
        sizes = [shape[0] >> level for level in range(len(network["channel_mult"]))]
        stated["attn_resolutions"] = [n for n in sizes if n in stated["attn_resolutions"]]
    for key, value in stated.items():
        if key not in read:
            raise unknown_name("setting of EDM's networks", key, [*read, *IGNORED])
        if value != read[key]:
            raise ValueError(
                f"config.json does not fit the weights: it has {key} = {value!r}, they have "
                f"{read[key]!r}"
            )


def _normalized(row: Any) -> list[float]:
    try:
        numbers = np.asarray(row, float)
        return (numbers / numbers.sum()).round(6).tolist()
    except (TypeError, ValueError) as error:
        raise ValueError(f"resample_filter in config.json must be numbers, got {row!r}") from error
