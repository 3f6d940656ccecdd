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
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgjax.checkpoints.arrays import (
    WeightSharding,
    abstract_as,
    as_dtype,
    to_named,
)
from dgjax.checkpoints.autoencoder_spec import Autoencoder, build_autoencoder
from dgjax.checkpoints.checksums import check_files, hash_files
from dgjax.checkpoints.described import describe
from dgjax.checkpoints.head_spec import build_head, head_spec
from dgjax.checkpoints.meta import CHECKSUMS, FORMAT, ORBAX_FORMAT, Meta, read_config
from dgjax.checkpoints.prompts import (
    PromptEncoder,
    is_text_file,
    read_prompt_encoder,
    write_prompt_encoder,
)
from dgjax.checkpoints.spec import build, build_network
from dgjax.checkpoints.weights_file import read_weights, write_weights
from dgjax.files import replace_folder, write_json
from dgjax.model.field import Field
from dgjax.model.parametrization import Network

__all__ = [
    "digest",
    "load",
    "load_autoencoder",
    "load_meta",
    "load_prompt_encoder",
    "save",
    "weight_bytes",
]

WEIGHTS, AUTOENCODER, HEAD = "weights", "autoencoder", "trace_head"  # names of the files
OWN_FILES = {"config.json", *(f"{name}.safetensors" for name in (WEIGHTS, AUTOENCODER, HEAD))}
OWN_FILES |= {WEIGHTS, AUTOENCODER}  # folders of the older format


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
        meta: facts about it. `meta.model` must describe `model`, but for the constant that
            `dgjax.normalize` measures, which is taken from the model. A model that was moved to
            another path (`repath`, `open_model`) is stored on the one it came from.
        autoencoder: of a model of latents, as `meta.autoencoder` describes it.
        prompts: text encoders and tokenizers of a model of prompts, as `meta.text` describes them.
        dtype: of the weights in the file. float16 moves a log-density of a shipped model by about
            0.4 nats, bfloat16 by about 3. None keeps each weight's own dtype.

    Raises:
        ValueError: if `folder` holds anything but a checkpoint or cannot be written, a weight is
            not finite in `dtype`, `meta.model` builds another model (a checkpoint holds neither a
            condition nor a prior), or the autoencoder or the text encoders are missing.
    """
    meta = replace(meta, model=describe(model, meta.model))
    if meta.latent and autoencoder is None:
        raise ValueError("a model of latents is saved with its autoencoder: pass autoencoder")
    if meta.text and prompts is None:
        raise ValueError("a model of prompts is saved with its text encoders: pass prompts")
    folder = Path(folder).absolute()
    find_replaced(folder)
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


def find_replaced(folder: str | os.PathLike) -> Meta | None:
    """Return the facts about the checkpoint that `save` would replace, or None.

    Args:
        folder: where a checkpoint is to be written.

    Raises:
        ValueError: if it is a file, or holds anything but a checkpoint.
    """
    folder = Path(folder).absolute()
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"cannot write to {folder}: it is no folder; choose another place")
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    try:
        return read_config(folder)[1]
    except ValueError as error:
        raise ValueError(
            f"cannot write to {folder}: it has files and is no dgjax checkpoint; choose a new or "
            "an empty folder"
        ) from error


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
    form, meta, checksums = read_config(folder)
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
    form, meta, checksums = read_config(folder)
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
    _, meta, checksums = read_config(folder)
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
    return read_config(Path(folder).absolute())[1]


def weight_bytes(folder: str | os.PathLike, dtype: Any = jnp.float32) -> int:
    """Return the bytes of the weights that `load` makes, without reading them.

    Args:
        folder: as of `load`.
        dtype: as of `load`.

    Raises:
        ValueError: if the folder is missing or no checkpoint.
    """
    _, meta, _ = read_config(Path(folder).absolute())
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
