"""Import networks of EDM2 (arXiv 2312.02696): weights with a config.json beside them.

EDM2 normalizes each weight whenever the network is called. Here this is done once, on import, so
that the imported network has plain weights.
"""

import os
import re
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from dgjax.checkpoints.configuration import unknown_name
from dgjax.checkpoints.meta import PIXELS, Meta
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from dgjax.importing.autoencoder_folder import import_autoencoder
from dgjax.importing.edm2_encoder import read_encoder
from dgjax.importing.model_folder import Imported, card_licence, read_json
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.weights import StoredArray, open_weights
from dgjax.networks import EDM2UNet

__all__ = ["Snapshot", "edm2_snapshots", "import_edm2", "is_edm2"]

PRECOND = "Precond"  # name of the class of EDM2's networks
# Names of weights that only EDM2's networks have together.
MARKS = {"unet.emb_fourier.phases", "unet.out_gain"}
REQUIRED = ("img_resolution", "img_channels", "label_dim")
# Ignored: names of classes, and settings of training and precision, which do not change the model.
IGNORED = {"class_name", "precond", "use_fp16", "dropout", "logvar_channels"}
NETWORK = signature(EDM2UNet.__init__).parameters.keys() - {"self", "shape", "num_classes", "rngs"}
EPS = 1e-4  # added to the magnitude of a weight before it divides


class Snapshot(NamedTuple):
    """A snapshot of a training run of EDM2.

    Attributes:
        step: length of training in thousands of images.
        width: width of the moving average, relative to the length of training.
        file: file of weights.
    """

    step: int
    width: float
    file: Path


def edm2_snapshots(folder: str | os.PathLike) -> list[Snapshot]:
    """Return the snapshots in a folder: files called NAME-STEP-WIDTH.safetensors.

    EDM2 gives its pickles such names, for example edm2-img512-xs-2147483-0.135.pkl.

    Args:
        folder: the folder.

    Returns:
        The snapshots, ordered by step and width; none if there is no such folder.
    """
    matches = [
        (re.fullmatch(r".*-(\d+)-(\d+\.\d+)\.safetensors", file.name), file)
        for file in Path(folder).glob("*.safetensors")
    ]
    return sorted(Snapshot(int(m[1]), float(m[2]), file) for m, file in matches if m)


def is_edm2(path: str | os.PathLike) -> bool:
    """Return whether a file or folder holds a network of EDM2.

    A folder does if its config.json states EDM2's class `Precond` as `precond`. Files, and folders
    without this statement, are judged by the names of their weights.
    """
    path = Path(path)
    try:
        config = path / "config.json"
        if config.is_file() and read_json(config).get("precond") == PRECOND:
            return True
        snapshots = edm2_snapshots(path)
        return open_weights(snapshots[0].file if snapshots else path).keys() >= MARKS
    except ValueError:  # no weights, or a file that cannot be read
        return False


def _open(path: Path) -> Mapping[str, Any]:
    """Open the weights in a file, or in a folder with one file of weights."""
    snapshots = edm2_snapshots(path)
    if len(snapshots) > 1:
        raise ValueError(
            f"{path} has {len(snapshots)} snapshots of one training, such as "
            f"{snapshots[-1].file.name}: import one file, or an average of all by "
            "dgjax.training.import_edm2_average"
        )
    return open_weights(path)


def import_edm2(
    path: str | os.PathLike,
    *,
    autoencoder: str | os.PathLike | None = None,
    licence: str | None = None,
    source: str = "",
    weights: Callable[[Path], Mapping[str, Any]] = _open,
) -> Imported:
    """Import a network of EDM2.

    Weights are normalized and kept in float32, and are read one array at a time.

    Args:
        path: a file of weights with a config.json in its folder, or a folder with both. The config
            holds `init_kwargs` of EDM2's `Precond`, and its encoder as `encoder`.
        autoencoder: for a model of latents, the folder of the autoencoder as diffusers saves it,
            or its name on the Hugging Face hub; unless given, `vae` beside the config.
        licence: licence of the model in one line; unless given, that of the model card.
        source: where the model came from, for the record; unless given, the path.
        weights: opens the weights of `path`, by EDM2's names and before normalization.

    Returns:
        The model, with its autoencoder if it is one of latents.

    Raises:
        ValueError: if something is missing, damaged, not supported or contradicts the weights; the
            message names it.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    config = _read_config(folder)
    size, channels = config["img_resolution"], config["img_channels"]
    spec = ModelSpec(
        shape=(size, size, channels),
        network={
            "kind": "edm2_unet",
            "num_classes": config["label_dim"] or None,
            **{key: value for key, value in config.items() if key in NETWORK},
        },
        path={"kind": "edm"},
        parametrization={"kind": "preconditioned", "sigma_data": config.get("sigma_data", 0.5)},
        t_min=0.002,  # the least and greatest noise levels of EDM2's sampler
        t_max=80.0,
    )
    latents, notes = read_encoder(config.get("encoder"), channels)
    data_range, described, decoder = (-1.0, 1.0), dict(PIXELS), None
    if latents is not None:
        data_range = (0.0, 1.0)  # EDM2 gives the autoencoder other values than diffusers does
        place = folder / "vae" if autoencoder is None else autoencoder
        if autoencoder is None and not (folder / "vae").is_dir():
            raise ValueError(
                f"{path} is a model of latents, and there is no autoencoder at {place}: name the "
                f"folder of {latents.name} as autoencoder, or this name, which the Hugging Face "
                "hub then is asked for"
            )
        described, decoder = import_autoencoder(place, spec.shape, **latents.coordinates)
    elif autoencoder is not None:
        raise ValueError(f"{path} is a model of pixels: leave the autoencoder out")
    arrays = weights(path)
    kept = {name: w for name, w in arrays.items() if not name.startswith("logvar_")}
    if len(kept) < len(arrays):
        notes += (
            "the uncertainty head (logvar) is left out: it weighs the training loss, and sampling "
            "and log-densities have no use for it",
        )
    like = nnx.eval_shape(lambda: build_network(spec))
    what = f"the EDM2 network in {path}"
    loaded = load_state_dict(like, _normalized(kept), what, renames=_renames(like, size))
    meta = Meta(
        model=spec,
        dataset="not stated",
        data_range=data_range,
        licence=licence or card_licence(folder) or "not stated",
        steps=0,
        source=source or str(path),
        autoencoder=described,
    )
    return Imported(build(spec, loaded), decoder, meta, "EDM2 UNet", "EDM2 Precond", notes)


def _read_config(folder: Path) -> dict[str, Any]:
    """Read config.json, and check the names of its settings."""
    config = read_json(folder / "config.json")
    if config.get("precond", PRECOND) != PRECOND:
        raise ValueError(
            f"config.json states precond {config['precond']!r}, and the weights are of EDM2, whose "
            f"networks are of class {PRECOND!r}"
        )
    for key in config:
        known = {*REQUIRED, *NETWORK, *IGNORED, "sigma_data", "encoder"}
        if key not in known:
            raise unknown_name("setting of EDM2's networks", key, sorted(known))
    for key in REQUIRED:
        least = 0 if key == "label_dim" else 1
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(
                f"{key} in {folder / 'config.json'} must be a whole number of at least {least}, "
                f"got {value!r}: the config holds init_kwargs of EDM2's Precond"
            )
    return config


def _normalized(weights: Mapping[str, Any]) -> dict[str, StoredArray]:
    """Normalize weights as EDM2 does when it calls its network, in float32."""

    def one(name: str, stored: Any) -> StoredArray:
        def read() -> np.ndarray:
            array = np.asarray(stored).astype(np.float32)
            if not name.endswith(".weight"):  # gains, frequencies and phases
                return array
            axes = tuple(range(1, array.ndim))
            magnitude = np.sqrt(np.mean(array**2, axes, keepdims=True))
            fan_in = np.prod(array.shape[1:])
            return array / ((magnitude + np.float32(EPS)) * np.sqrt(fan_in, dtype=np.float32))

        return StoredArray(tuple(stored.shape), np.dtype(np.float32), read)

    return {name: one(name, stored) for name, stored in weights.items()}


def _renames(network: Any, height: int) -> list[tuple[str, str]]:
    """Return patterns of EDM2's names with the names in `EDM2UNet`, for `load_state_dict`."""
    levels = 1 + sum(block.resample == "down" for block in network.enc)
    blocks = len(network.enc) // levels  # of a level of the encoder, without the one that resamples
    enc, dec = [], []
    for level in range(levels):
        size = f"{height >> level}x{height >> level}"
        enc += [f"{size}_down"] if level > 0 else []
        enc += [f"{size}_block{i}" for i in range(blocks)]
    for level in reversed(range(levels)):
        size = f"{height >> level}x{height >> level}"
        dec += [f"{size}_up"] if level < levels - 1 else [f"{size}_in0", f"{size}_in1"]
        dec += [f"{size}_block{i}" for i in range(blocks + 1)]
    layers = [(f"enc.{name}", f"enc.{i}") for i, name in enumerate(enc)]
    layers += [(f"dec.{name}", f"dec.{i}") for i, name in enumerate(dec)]
    layers += [(f"enc.{height}x{height}_conv", "in_conv")]
    return [(r"^unet\.", ""), *((rf"^{re.escape(a)}\.", f"{b}.") for a, b in layers)]
