"""Networks of Karras et al. 2022 (EDM): a state dict with a small config.json beside it.

What a network is made of is read from the names and shapes of its weights. The config says which
preconditioning they were trained in, and must not contradict them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dgjax.checkpoints.checkpoint import Meta
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from dgjax.configuration import unknown_name
from dgjax.importing.edm_structure import read_structure
from dgjax.importing.folder import Imported, card_licence, read_json
from dgjax.importing.names import fill
from dgjax.importing.weights import open_weights

__all__ = ["import_edm", "is_edm"]

KINDS = {"song_unet": "SongUNet", "dhariwal_unet": "DhariwalUNet"}
# Of training, or of how EDM runs a network: they make no other model of it.
HABITS = {"dropout", "label_dropout", "use_fp16", "checkpoint_level", "epsilon_t", "M"}
LEVELS = (0.002, 80.0)  # noise levels of EDM's samplers, where a config states none


def is_edm(folder: Path) -> bool:
    """Whether the folder has a config of EDM's."""
    if not (folder / "config.json").is_file():
        return False
    config = read_json(folder / "config.json")
    return config.get("model_type") in KINDS.values() or "precond" in config


def import_edm(folder: Path, *, licence: str | None = None, source: str = "") -> Imported:
    """The model in a folder with weights and the config.json that EDM's own `init_kwargs` make.

    Weights keep their precision and are read one array at a time.

    Args:
        folder: with config.json and weights as `dgjax.importing.weights.open_weights` takes them.
        licence: in one line; that of the model card unless given.
        source: where the model came from, for its checkpoint; the folder unless given.

    Raises:
        ValueError: saying what is missing, damaged, unknown here or contradicts the weights.
    """
    config = dict(read_json(folder / "config.json"))
    what = f"the EDM network in {folder}"
    weights = {name.removeprefix("model."): w for name, w in open_weights(folder).items()}
    shape, network, renames, constants = read_structure(weights, what)
    precond, process = _process(config)
    _compare(config, shape, network)
    spec = ModelSpec(shape, network, **process)
    like = nnx.eval_shape(lambda: build_network(spec))
    filled = fill(like, weights, what, renames=renames, constants=constants)
    meta = Meta(
        model=spec,
        dataset="not stated",
        data_range=(-1.0, 1.0),
        licence=licence or card_licence(folder) or "not stated",
        steps=0,
        source=source or str(folder),
    )
    return Imported(build(spec, filled), None, meta, KINDS[network["kind"]], precond, ())


def _process(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preconditioning's name; path, parametrization and range. Takes its keys from `config`."""
    precond = config.pop("precond", "EDMPrecond" if "sigma_data" in config else None)
    if precond is None:
        raise ValueError(
            "config.json does not say in which preconditioning the network was trained: add "
            '"precond": "EDMPrecond" or "VPPrecond"'
        )
    if precond == "EDMPrecond":
        low, high = _number(config, "sigma_min", 0.0), _number(config, "sigma_max", math.inf)
        data = _number(config, "sigma_data", 0.5)
        return precond, {
            "path": {"kind": "edm"},
            "parametrization": {"kind": "preconditioned", "sigma_data": data},
            "t_min": low if low > 0 else LEVELS[0],
            "t_max": high if math.isfinite(high) else LEVELS[1],
        }
    if precond == "VPPrecond":
        # Its network is told (M - 1) t and predicts the noise: the same path in that clock.
        slope, start = _number(config, "beta_d", 19.9), _number(config, "beta_min", 0.1)
        clock, first = _number(config, "M", 1000.0) - 1, _number(config, "epsilon_t", 1e-5)
        return precond, {
            "path": {
                "kind": "vp",
                "beta_min": start / clock,
                "beta_max": start / clock + slope / clock**2,
            },
            "parametrization": {"kind": "noise"},
            "t_min": clock * first,
            "t_max": clock,
        }
    raise unknown_name("preconditioning", str(precond), ["EDMPrecond", "VPPrecond"])


def _number(config: dict[str, Any], key: str, default: float) -> float:
    value = config.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError(f"{key} in config.json must be a number, got {value!r}")
    return float(value)


def _compare(config: Mapping[str, Any], shape: tuple[int, ...], network: dict[str, Any]) -> None:
    """Raise a ValueError if the config says other than the weights, or what is unknown here."""
    stated = {key: value for key, value in config.items() if key not in HABITS}
    there = {
        **network,
        "model_type": KINDS[network["kind"]],
        "img_resolution": shape[0],
        "img_channels": shape[2],
        "in_channels": shape[2],
        "out_channels": shape[2],
        "label_dim": network["num_classes"] or 0,
        "augment_dim": network["augment_dim"] or 0,
    }
    del there["kind"], there["num_classes"]
    # Any multiple of a filter is the same one, and a config may name resolutions that are not met.
    if "resample_filter" in stated and "resample_filter" in there:
        stated["resample_filter"] = _shares(stated["resample_filter"])
        there["resample_filter"] = _shares(there["resample_filter"])
    if isinstance(stated.get("attn_resolutions"), list):
        met = [shape[0] >> level for level in range(len(network["channel_mult"]))]
        stated["attn_resolutions"] = [n for n in met if n in stated["attn_resolutions"]]
    for key, value in stated.items():
        if key not in there:
            raise unknown_name("setting of EDM's networks", key, [*there, *HABITS])
        if value != there[key]:
            raise ValueError(
                f"config.json does not fit the weights: it has {key} = {value!r}, they have "
                f"{there[key]!r}"
            )


def _shares(row: Any) -> list[float]:
    try:
        numbers = np.asarray(row, float)
        return (numbers / numbers.sum()).round(6).tolist()
    except (TypeError, ValueError) as error:
        raise ValueError(f"resample_filter in config.json must be numbers, got {row!r}") from error
