"""A trained model as a folder: `config.json`, and its weights in `weights.safetensors`.

The folder holds everything that rebuilds the `Field`. A model of latents has its autoencoder in
the same folder, in `autoencoder.safetensors`, and a model of prompts its text encoders and
tokenizers, in `text_encoder.safetensors` and `tokenizer.json`. Each part is loaded alone. Folders
are replaced as a whole, so a reader never meets half a checkpoint.

Folders of the older format "dgjax-checkpoint-1" have orbax folders `weights` and `autoencoder` in
place of the two files. They are read, and no longer written.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgjax._version import __version__
from dgjax.checkpoints.arrays import (
    WeightSharding,
    abstract_as,
    as_dtype,
    first_line,
    to_named,
)
from dgjax.checkpoints.checksums import check_files, hash_files
from dgjax.checkpoints.configuration import check_names, check_types
from dgjax.checkpoints.prompts import (
    PromptEncoder,
    check_text,
    is_text_file,
    read_prompt_encoder,
    write_prompt_encoder,
)
from dgjax.checkpoints.spec import (
    Autoencoder,
    ModelSpec,
    build,
    build_autoencoder,
    build_head,
    build_network,
    check_autoencoder,
    check_head,
    head_spec,
)
from dgjax.checkpoints.weights_file import read_weights, write_weights
from dgjax.files import replace_folder, write_json
from dgjax.model.field import Field
from dgjax.model.parametrization import Network
from dgjax.typing import short_fields

__all__ = [
    "PIXELS",
    "Meta",
    "digest",
    "load",
    "load_autoencoder",
    "load_meta",
    "load_prompt_encoder",
    "save",
    "weight_bytes",
]

FORMAT, ORBAX_FORMAT = "dgjax-checkpoint-2", "dgjax-checkpoint-1"
WEIGHTS, AUTOENCODER, HEAD = "weights", "autoencoder", "trace_head"  # names of the files
OWN_FILES = {"config.json", *(f"{name}.safetensors" for name in (WEIGHTS, AUTOENCODER, HEAD))}
OWN_FILES |= {WEIGHTS, AUTOENCODER}  # folders of the older format
CHECKSUMS = "sha256"  # key of config.json
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


def save(
    folder: str | os.PathLike,
    model: Field,
    meta: Meta,
    *,
    autoencoder: Autoencoder | None = None,
    prompts: PromptEncoder | None = None,
    dtype: Any = jnp.float16,
) -> None:
    """Write a model to a folder, replacing a checkpoint that is there and no other files.

    With several hosts call it on one of them: it does not wait for the others.

    Args:
        folder: the folder to make.
        model: the model; its weights are on devices of this host.
        meta: facts about it. `meta.model` must describe `model`.
        autoencoder: of a model of latents, as `meta.autoencoder` describes it.
        prompts: text encoders and tokenizers of a model of prompts, as `meta.text` describes them.
        dtype: of the weights in the file. float16 moves a log-density of a shipped model by about
            0.4 nats, bfloat16 by about 3. None keeps each weight's own dtype.

    Raises:
        ValueError: if `folder` holds anything but a checkpoint or cannot be written, a weight is
            not finite in `dtype`, or the autoencoder or the text encoders are missing.
    """
    if meta.latent and autoencoder is None:
        raise ValueError("a model of latents is saved with its autoencoder: pass autoencoder")
    if meta.text and prompts is None:
        raise ValueError("a model of prompts is saved with its text encoders: pass prompts")
    folder = Path(folder).absolute()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        if folder.is_dir() and not (folder / "config.json").exists():
            raise ValueError(
                f"cannot write to {folder}: it has files and is no dgjax checkpoint; choose a "
                "new or an empty folder"
            )
        _read_config(folder)  # raises unless it is a checkpoint, which may be replaced
    weights = {WEIGHTS: as_dtype(model.network, dtype)}
    if meta.latent:
        weights[AUTOENCODER] = as_dtype(autoencoder, dtype)
    meta = replace(meta, trace_head=head_spec(model.trace_head))
    if meta.trace_head:
        weights[HEAD] = as_dtype(model.trace_head, None)
    with replace_folder(folder, keep=lambda name: not _is_own(name)) as new:
        for name, arrays in weights.items():
            write_weights(new / f"{name}.safetensors", arrays)
        if meta.text and prompts is not None:
            write_prompt_encoder(new, prompts, dtype)
        config = {"format": FORMAT, **meta.to_dict()}
        config[CHECKSUMS] = hash_files(new)
        write_json(new / "config.json", config)


def load(
    folder: str | os.PathLike,
    sharding: WeightSharding | None = None,
    *,
    verify: bool = True,
    dtype: Any = jnp.float32,
) -> tuple[Field, Meta]:
    """Load a model from a folder, with float32 weights unless another dtype is asked for.

    The host holds one weight at a time on the way to the devices.

    Args:
        folder: a folder that `save` wrote, on any number of devices.
        sharding: of all weights, or a function from a weight's shape to its sharding, such as
            `dgjax.devices.weight_sharding(mesh)`. Each device is then sent its part only. With
            None all weights go to the default device.
        verify: whether to compare the checksums of the files first, which reads them once more:
            about a second per gigabyte. Checkpoints of earlier versions have none.
        dtype: of the weights in memory. bfloat16 halves it and moves a log-density of a shipped
            model by about 3 nats; samples, products and log-densities are in float32 all the same.

    Returns:
        The model, and the facts about it.

    Raises:
        ValueError: if the folder is missing, truncated, damaged, no checkpoint or does not fit its
            own config, or `sharding` does not divide a weight.
    """
    folder = Path(folder).absolute()
    form, meta, checksums = _read_config(folder)
    if verify:
        check_files(folder, _of_part(WEIGHTS, checksums) | _of_part(HEAD, checksums))
    like = abstract_as(_abstract_network(meta), dtype)
    network = _read(folder, form, WEIGHTS, like, f"the checkpoint {folder}", sharding)
    model = build(meta.model, network)
    if meta.trace_head:
        like = nnx.eval_shape(lambda: build_head(meta.trace_head, meta.shape))
        head = _read(folder, form, HEAD, like, f"the head in {folder}", sharding)
        model = replace(model, trace_head=head)
    return model, meta


def load_autoencoder(
    folder: str | os.PathLike, sharding: WeightSharding | None = None, *, verify: bool = True
) -> Autoencoder:
    """Load the autoencoder between a model's samples and images.

    Args:
        folder: as of `load`.
        sharding: as of `load`.
        verify: as of `load`.

    Returns:
        The autoencoder; the identity if the model's samples are images already.

    Raises:
        ValueError: as of `load`.
    """
    folder = Path(folder).absolute()
    form, meta, checksums = _read_config(folder)
    if verify:
        check_files(folder, _of_part(AUTOENCODER, checksums))
    like = nnx.eval_shape(lambda: build_autoencoder(meta.autoencoder, meta.shape))
    if not meta.latent:
        return like
    return _read(folder, form, AUTOENCODER, like, f"the autoencoder in {folder}", sharding)


def load_prompt_encoder(
    folder: str | os.PathLike,
    sharding: WeightSharding | None = None,
    *,
    verify: bool = True,
    dtype: Any = jnp.float32,
) -> PromptEncoder:
    """Load the text encoders and tokenizers that turn prompts into conditions of a model.

    Args:
        folder: as of `load`.
        sharding: as of `load`.
        verify: as of `load`.
        dtype: of the weights in memory, as of `load`. Conditions are in float32 all the same.

    Returns:
        A function from a prompt to a condition.

    Raises:
        ValueError: as of `load`; if the checkpoint has no text encoders.
    """
    folder = Path(folder).absolute()
    _, meta, checksums = _read_config(folder)
    if not meta.text:
        raise ValueError(
            f"the checkpoint {folder} has no text encoder, so it takes no prompts: pass the "
            "embeddings of a prompt as cond, or choose another model"
        )
    if verify:
        check_files(folder, {k: v for k, v in checksums.items() if is_text_file(k)})
    return read_prompt_encoder(folder, meta.text, sharding, dtype)


def load_meta(folder: str | os.PathLike) -> Meta:
    """Return the facts about a checkpoint, without reading its weights.

    Raises:
        ValueError: if the folder is missing or no checkpoint.
    """
    return _read_config(Path(folder).absolute())[1]


def weight_bytes(folder: str | os.PathLike, dtype: Any = jnp.float32) -> int:
    """Return the bytes of the weights that `load` makes, without reading them.

    Args:
        folder: as of `load`.
        dtype: as of `load`.

    Raises:
        ValueError: if the folder is missing or no checkpoint.
    """
    _, meta, _ = _read_config(Path(folder).absolute())
    network = abstract_as(_abstract_network(meta), dtype)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(network))


def digest(model: Field, meta: Meta, autoencoder: Autoencoder | None = None) -> str:
    """Return the SHA-256 of a model's weights and facts, which copies of a checkpoint share."""
    # Names of classes do not change a sample.
    values = {**meta.to_dict(), "labels": ()}
    values.pop("trace_head", None)  # nor does a head
    content = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name, leaf in sorted(to_named((model.network, autoencoder)).items()):
        value = np.asarray(leaf)
        content.update(f"{name} {value.dtype} {value.shape}".encode())
        content.update(value.tobytes())
    return content.hexdigest()


def _is_own(name: str) -> bool:
    """Return whether a checkpoint writes a file or folder of this name."""
    return name in OWN_FILES or is_text_file(name)


def _abstract_network(meta: Meta) -> Network:
    # Shapes only: no weight is drawn that would be thrown away.
    return nnx.eval_shape(lambda: build_network(meta.model))


def _of_part(part: str, checksums: dict[str, str]) -> dict[str, str]:
    """Select the files of the weights or of the autoencoder, in either format."""
    return {k: v for k, v in checksums.items() if k.startswith((f"{part}.", f"{part}/"))}


def _read(
    folder: Path, form: str, name: str, like: Any, what: str, sharding: WeightSharding | None
) -> Any:
    if form == ORBAX_FORMAT:
        from dgjax.checkpoints import orbax_folder  # few need it, and importing orbax takes long

        return orbax_folder.restore(folder / name, like, what, sharding)
    return read_weights(folder / f"{name}.safetensors", like, what, sharding)


def _read_config(folder: Path) -> tuple[str, Meta, dict[str, str]]:
    """Return the format of a checkpoint, the facts about its model, and its files' checksums."""
    file = folder / "config.json"
    try:
        there = stat.S_ISDIR(folder.stat().st_mode)
    except (OSError, ValueError):  # also of names that no file can have
        there = False
    if not there:
        raise ValueError(f"{folder} is no checkpoint: there is no such folder")
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} is no dgjax checkpoint: it has no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(config, dict) or config.get("format") not in (FORMAT, ORBAX_FORMAT):
        raise ValueError(
            f"{file} is not of a dgjax checkpoint: its format is neither {FORMAT!r} nor "
            f"{ORBAX_FORMAT!r}{_written_by_newer(config)}"
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
