"""A trained model as a folder: `weights` (orbax, half precision) and `config.json` beside it.

The autoencoder of a model of latents is in the same folder, its weights in `autoencoder`.

The folder holds everything that rebuilds the `Field`; it is written next to its place and moved
there whole, so a reader never meets half a checkpoint.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgjax._version import __version__
from dgjax.checkpoints.arrays import (
    Placement,
    as_dtype,
    first_line,
    from_named,
    read_arrays,
    restore,
    to_named,
    write_arrays,
)
from dgjax.checkpoints.spec import (
    Autoencoder,
    ModelSpec,
    build,
    build_autoencoder,
    build_network,
    check_autoencoder,
    check_names,
)
from dgjax.model.field import Field
from dgjax.model.parametrization import Network

__all__ = [
    "PIXELS",
    "Meta",
    "digest",
    "from_named",
    "load",
    "load_autoencoder",
    "read_arrays",
    "save",
    "to_named",
    "weight_bytes",
]

FORMAT = "dgjax-checkpoint-1"
PIXELS = {"kind": "pixels"}  # where no autoencoder is named


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says of its model.

    Attributes:
        model: the model without its weights.
        dataset: name of the data it was trained on.
        data_range: (low, high), the range of the pictures' values: in the model's coordinates, or
            as the autoencoder has them.
        licence: of the data, in one line.
        steps: of training.
        version: of dgjax that wrote it.
        held_out: fraction of a folder of images that training did not see.
        source: where an imported model came from; empty for one that dgjax trained.
        autoencoder: between the model's samples and pictures, as in `ModelSpec`; of kind "pixels"
            where samples are pixels.
        labels: names of the classes, synonyms separated by commas; empty if they have none.
    """

    model: ModelSpec
    dataset: str
    data_range: tuple[float, float]
    licence: str
    steps: int
    version: str = __version__
    held_out: float = 0.0
    source: str = ""
    autoencoder: Mapping[str, Any] = field(default_factory=lambda: dict(PIXELS))
    labels: tuple[str, ...] = ()

    @property
    def latent(self) -> bool:
        """Whether the model's samples, and so its densities, are of latents and not of pixels."""
        return self.autoencoder["kind"] != PIXELS["kind"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.model.shape


def save(
    folder: str | os.PathLike,
    model: Field,
    meta: Meta,
    *,
    autoencoder: Autoencoder | None = None,
    dtype: Any = jnp.float16,
) -> None:
    """Write `model`'s weights as `dtype` and `meta` to `folder`, replacing a checkpoint there.

    float16 moves a log-density of the shipped model by about 0.4 nats, bfloat16 by about 3; None
    keeps the weights as they are. An `autoencoder` is that of `meta.autoencoder`, and is needed if
    the model's samples are latents.

    Raises:
        ValueError: if `folder` holds anything but a checkpoint or cannot be written, a weight
            does not fit `dtype`, or the autoencoder is missing.
    """
    if meta.latent and autoencoder is None:
        raise ValueError("a model of latents is saved with its autoencoder: pass autoencoder")
    folder = Path(folder).absolute()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        _read_meta(folder)  # raises unless it is a checkpoint, which may be replaced
    weights = {"weights": as_dtype(model.network, dtype)}
    if meta.latent:
        weights["autoencoder"] = as_dtype(autoencoder, dtype)
    config = {"format": FORMAT, **asdict(meta), "model": meta.model.to_dict()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            for name, arrays in weights.items():
                write_arrays(new / name, arrays)
            (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            if folder.exists():
                folder.rename(Path(temporary) / "old")
            new.rename(folder)
    except OSError as error:
        raise ValueError(f"cannot write a checkpoint to {folder}: {error}") from error


def load(folder: str | os.PathLike, sharding: Placement | None = None) -> tuple[Field, Meta]:
    """The model in `folder` with float32 weights, and what is known of it.

    The host holds no second copy of the weights on the way.

    Args:
        folder: that `save` wrote, on whatever devices.
        sharding: of all weights, or a function from a weight's shape to its own, such as
            `dgjax.devices.sharding.weight_sharding(mesh)`: each device is then sent its part
            alone. The
            default device has all of them unless told.

    Raises:
        ValueError: if the folder is missing, foreign, truncated or does not fit its own config, or
            `sharding` does not divide a weight.
    """
    folder = Path(folder).absolute()
    meta = _read_meta(folder)
    like = _network_shapes(meta)
    network = restore(folder / "weights", like, f"the checkpoint {folder}", sharding)
    return build(meta.model, network), meta


def weight_bytes(folder: str | os.PathLike) -> int:
    """Bytes of the float32 weights that `load` makes of `folder`, without reading them.

    Raises:
        ValueError: if the folder is missing or foreign.
    """
    like = _network_shapes(_read_meta(Path(folder).absolute()))
    return sum(4 * leaf.size for leaf in jax.tree.leaves(like))


def load_autoencoder(folder: str | os.PathLike, sharding: Placement | None = None) -> Autoencoder:
    """What turns samples of the model in `folder` into pictures; arguments and errors as of `load`.

    Where samples are pixels it changes nothing.
    """
    folder = Path(folder).absolute()
    meta = _read_meta(folder)
    like = nnx.eval_shape(lambda: build_autoencoder(meta.autoencoder, meta.shape))
    if not meta.latent:
        return like
    return restore(folder / "autoencoder", like, f"the autoencoder in {folder}", sharding)


def digest(model: Field, meta: Meta, autoencoder: Autoencoder | None = None) -> str:
    """SHA-256 of a model's weights and of what is said of it: equal for copies of a checkpoint."""
    content = hashlib.sha256(json.dumps(asdict(meta), sort_keys=True).encode())
    for name, leaf in sorted(to_named((model.network, autoencoder)).items()):
        value = np.asarray(leaf)
        content.update(f"{name} {value.dtype} {value.shape}".encode())
        content.update(value.tobytes())
    return content.hexdigest()


def _network_shapes(meta: Meta) -> Network:
    # Shapes only: no weight is drawn that would be thrown away.
    return nnx.eval_shape(lambda: build_network(meta.model))


def _read_meta(folder: Path) -> Meta:
    file = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(f"{folder} is no checkpoint: there is no such folder")
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} is no dgjax checkpoint: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{file} is not of a dgjax checkpoint: its format is not {FORMAT!r}")
    del config["format"]
    older = {"held_out": 0.0, "source": "", "autoencoder": PIXELS, "labels": ()}
    config = {**older, **config}  # older ones do not say
    try:
        check_names("config", config, [f.name for f in fields(Meta)], required=True)
        model = ModelSpec.from_dict(config["model"])
        check_autoencoder(config["autoencoder"])
        low, high = config["data_range"]
        labels = tuple(map(str, config["labels"]))
        return Meta(**{**config, "model": model, "data_range": (low, high), "labels": labels})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {first_line(error)}") from error
