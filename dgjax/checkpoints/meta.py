"""The facts about a checkpoint, which its file `config.json` states, and their checks."""

import json
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dgjax._version import __version__
from dgjax.checkpoints.arrays import first_line
from dgjax.checkpoints.autoencoder_spec import check_autoencoder
from dgjax.checkpoints.configuration import check_names, check_types
from dgjax.checkpoints.head_spec import check_head
from dgjax.checkpoints.prompts import check_text
from dgjax.checkpoints.spec import ModelSpec
from dgjax.typing import short_fields

__all__ = ["CHECKSUMS", "FORMAT", "ORBAX_FORMAT", "PIXELS", "Meta", "read_config"]

FORMAT, ORBAX_FORMAT = "dgjax-checkpoint-2", "dgjax-checkpoint-1"
CHECKSUMS = "sha256"  # key of config.json
OTHERS = "; `dgjax import` makes a checkpoint of a model of another library or of a hub"
PIXELS = {"kind": "pixels"}  # the autoencoder of a model whose samples are pixels
# Types of the fields of `Meta` that hold plain values.
FACTS = {"dataset": str, "licence": str, "version": str, "source": str, "steps": int}
FACTS |= {"held_out": float, "labels": tuple[str, ...], "data_range": tuple[float, ...]}
# Values of fields that checkpoints of older versions lack.
DEFAULTS = {"held_out": 0.0, "source": "", "autoencoder": PIXELS, "labels": (), "text": {}}
DEFAULTS |= {"trace_head": {}}


@dataclass(frozen=True, repr=False)
class Meta:
    """Facts about a trained model, as `config.json` of its checkpoint states them.

    Attributes:
        model: specification of the model, without its weights.
        dataset: name of the training data.
        data_range: (low, high), the range of values of the images: in the model's coordinates, or
            in the autoencoder's for a model of latents.
        licence: licence of the training data, in one line.
        steps: number of training steps.
        version: version of dgjax that wrote the checkpoint.
        held_out: fraction of a folder of images that was kept out of training.
        source: where an imported model comes from; empty for a model trained by dgjax.
        autoencoder: specification of the autoencoder between samples and images, as
            `{"kind": name, ...arguments}`; of kind "pixels" where samples are images already.
        labels: names of the classes in the order of their labels, synonyms separated by commas;
            empty if the classes have no names.
        text: specification of what turns prompts into conditions, see
            `dgjax.checkpoints.prompts`; empty for a model without text encoders.
        trace_head: specification of the head for the estimator `Distilled`, as
            `{"kind": name, ...arguments}`; empty for a model without one. `save` sets it.
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
    text: Mapping[str, Any] = field(default_factory=dict)
    trace_head: Mapping[str, Any] = field(default_factory=dict)

    __repr__ = short_fields

    @property
    def latent(self) -> bool:
        """Whether samples, and so their densities, are of latents and not of images."""
        return self.autoencoder["kind"] != PIXELS["kind"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.model.shape

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain lists, numbers and names for JSON."""
        values = {**asdict(self), "model": self.model.to_dict()}
        for name in ("text", "trace_head"):
            if not values[name]:  # checkpoints and digests of other models stay as they were
                del values[name]
        return values


def _advice(folder: Path) -> str:
    inside = folder / "model"  # where `dgjax train` writes the model of a run
    if (inside / "config.json").is_file():
        return f"; it is the folder of a training run: take its model, {inside}"
    return OTHERS


def read_config(folder: Path) -> tuple[str, Meta, dict[str, str]]:
    """Return the format of a checkpoint, the facts about its model, and its files' checksums.

    Raises:
        ValueError: if the folder is missing or no checkpoint.
    """
    file = folder / "config.json"
    try:
        there = stat.S_ISDIR(folder.stat().st_mode)
    except (OSError, ValueError):  # also of names that no file can have
        there = False
    if not there:
        raise ValueError(f"{folder} is no checkpoint: there is no such folder{OTHERS}")
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{folder} is no dgjax checkpoint: it has no config.json{_advice(folder)}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(config, dict) or config.get("format") not in (FORMAT, ORBAX_FORMAT):
        raise ValueError(
            f"{file} is not of a dgjax checkpoint: its format is neither {FORMAT!r} nor "
            f"{ORBAX_FORMAT!r}{_written_by_newer(config) or _advice(folder)}"
        )
    form, checksums = config.pop("format"), config.pop(CHECKSUMS, {})
    if not isinstance(checksums, dict):
        raise ValueError(
            f"{file}: {CHECKSUMS} must be a table of files, got {str(checksums)[:80]!r}"
        )
    config = {**DEFAULTS, **config}
    try:
        check_names("config", config, [f.name for f in fields(Meta)], required=True)
        model = ModelSpec.from_dict(config["model"])
        check_autoencoder(config["autoencoder"])
        check_text(config["text"])
        check_head(config["trace_head"])
        check_types("config", {name: config[name] for name in FACTS}, FACTS)
        low, high = _check_facts(config)
        labels = tuple(config["labels"])
        meta = Meta(**{**config, "model": model, "data_range": (low, high), "labels": labels})
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {first_line(error)}{_written_by_newer(config)}") from error
    return form, meta, checksums


def _check_facts(config: Mapping[str, Any]) -> tuple[float, float]:
    """Check the values of facts whose types are right; return the data range."""
    if len(config["data_range"]) != 2 or not config["data_range"][0] < config["data_range"][1]:
        raise ValueError(
            f"data_range must be two numbers, the lower one first, got {config['data_range']}"
        )
    if config["steps"] < 0 or not 0 <= config["held_out"] < 1:
        raise ValueError(
            "steps must not be negative and held_out must lie in [0, 1), got "
            f"{config['steps']} and {config['held_out']}"
        )
    return config["data_range"]


def _written_by_newer(config: Any) -> str:
    """Return a hint if a later version of dgjax wrote this config, else nothing."""
    version = config.get("version") if isinstance(config, dict) else None

    def numbers(text):
        return [int(part) for part in text.split(".")[:3]]

    try:
        newer = numbers(version) > numbers(__version__)
    except (AttributeError, ValueError):
        return ""
    if not newer:
        return ""
    return f"; dgjax {version} wrote it and this is dgjax {__version__}: upgrade dgjax"
