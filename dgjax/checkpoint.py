"""A trained model as a folder: `weights` (orbax, half precision) and `config.json` beside it.

The autoencoder of a model of latents is in the same folder, its weights in `autoencoder`.

The folder holds everything that rebuilds the `Field`; it is written next to its place and moved
there whole, so a reader never meets half a checkpoint.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array, PyTree

import dgjax
from dgjax.fields import Field
from dgjax.spec import (
    Autoencoder,
    ModelSpec,
    build,
    build_autoencoder,
    build_network,
    check_autoencoder,
    check_names,
)

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
]

FORMAT = "dgjax-checkpoint-1"
PIXELS = {"kind": "pixels"}  # where no autoencoder is named
PART = 2**24  # bytes of weights read at a time, and of a file of weights
# Of all arrays, or of each by its shape.
Placement = Sharding | Callable[[tuple[int, ...]], Sharding]


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
    version: str = dgjax.__version__
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
    weights = {"weights": _as_dtype(model.network, dtype)}
    if meta.latent:
        weights["autoencoder"] = _as_dtype(autoencoder, dtype)
    config = {"format": FORMAT, **asdict(meta), "model": meta.model.to_dict()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            for name, arrays in weights.items():
                with _own_writer() as writer:
                    args = ocp.args.PyTreeSave(arrays, ocdbt_target_data_file_size=PART)
                    writer.save(new / name, args=args)
                # It names the temporary folder, for file systems that cannot rename.
                (new / name / "commit_success.txt").unlink(missing_ok=True)
            (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            if folder.exists():
                folder.rename(Path(temporary) / "old")
            new.rename(folder)
    except OSError as error:
        raise ValueError(f"cannot write a checkpoint to {folder}: {error}") from error


class _Unchanged(np.ndarray):
    """An array that nobody changes while it is written, which orbax would copy first."""

    def __deepcopy__(self, memo: dict[int, Any] | None) -> "_Unchanged":
        return self


def _as_dtype(tree: PyTree[Array], dtype: Any) -> dict[str, np.ndarray]:
    with np.errstate(over="ignore"):
        weights = {
            k: np.asarray(v).astype(dtype or v.dtype, copy=False) for k, v in to_named(tree).items()
        }
    for name, value in weights.items():
        if not np.isfinite(value.astype(np.float32)).all():
            raise ValueError(f"weight {name} is not finite as {value.dtype.name}; not saved")
    return {name: value.view(_Unchanged) for name, value in weights.items()}


def _own_writer() -> ocp.Checkpointer:
    """One that does not wait for other hosts, which need not save what they hold too."""
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"host{here}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def load(folder: str | os.PathLike, sharding: Placement | None = None) -> tuple[Field, Meta]:
    """The model in `folder` with float32 weights, and what is known of it.

    The host holds no second copy of the weights on the way.

    Args:
        folder: that `save` wrote, on whatever devices.
        sharding: of all weights, or a function from a weight's shape to its own, such as
            `dgjax.sharding.weight_sharding(mesh)`: each device is then sent its part alone. The
            default device has all of them unless told.

    Raises:
        ValueError: if the folder is missing, foreign, truncated or does not fit its own config, or
            `sharding` does not divide a weight.
    """
    folder = Path(folder).absolute()
    meta = _read_meta(folder)
    # Shapes only: no weight is drawn that would be thrown away.
    like = nnx.eval_shape(lambda: build_network(meta.model))
    network = _restore(folder / "weights", like, f"the checkpoint {folder}", sharding)
    return build(meta.model, network), meta


def load_autoencoder(folder: str | os.PathLike, sharding: Placement | None = None) -> Autoencoder:
    """What turns samples of the model in `folder` into pictures; arguments and errors as of `load`.

    Where samples are pixels it changes nothing.
    """
    folder = Path(folder).absolute()
    meta = _read_meta(folder)
    like = nnx.eval_shape(lambda: build_autoencoder(meta.autoencoder, meta.shape))
    if not meta.latent:
        return like
    return _restore(folder / "autoencoder", like, f"the autoencoder in {folder}", sharding)


def _restore(
    folder: Path, like: PyTree[Any], what: str, sharding: Placement | None
) -> PyTree[Array]:
    """A pytree like `like` of JAX arrays, from those in `folder`; errors as of `load`."""
    expected = to_named(like)
    _check_fit(expected, _stored_shapes(folder), what)
    sizes = np.cumsum([leaf.size * leaf.dtype.itemsize for leaf in expected.values()])
    leaves = []
    for _, part in groupby(zip(expected.items(), sizes // PART, strict=True), lambda item: item[1]):
        wanted = dict(item for item, _ in part)
        how = {name: _how(name, leaf, sharding) for name, leaf in wanted.items()}
        found = _read(folder, how)
        leaves += [jnp.asarray(found.pop(name), leaf.dtype) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _how(name: str, leaf: Any, sharding: Placement | None) -> ocp.RestoreArgs:
    """How orbax restores an array; neither way needs a mesh like the one it was written on."""
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    where = sharding(leaf.shape) if callable(sharding) else sharding
    try:
        where.shard_shape(leaf.shape)
    except ValueError as error:
        raise ValueError(
            f"weight {name} of shape {leaf.shape} cannot be cut as {where}: take a sharding by "
            "shape, such as dgjax.sharding.weight_sharding(mesh)"
        ) from error
    return ocp.ArrayRestoreArgs(sharding=where)


def digest(model: Field, meta: Meta, autoencoder: Autoencoder | None = None) -> str:
    """SHA-256 of a model's weights and of what is said of it: equal for copies of a checkpoint."""
    content = hashlib.sha256(json.dumps(asdict(meta), sort_keys=True).encode())
    for name, leaf in sorted(to_named((model.network, autoencoder)).items()):
        value = np.asarray(leaf)
        content.update(f"{name} {value.dtype} {value.shape}".encode())
        content.update(value.tobytes())
    return content.hexdigest()


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The named arrays that orbax wrote to `folder`, whatever devices they were on.

    Raises:
        ValueError: if the folder is missing or damaged.
    """
    how = {name: _how(name, leaf, None) for name, leaf in _stored_shapes(folder).items()}
    return _read(folder, how)


def _stored_shapes(folder: Path) -> dict[str, Any]:
    """What orbax says of the arrays in `folder`: their shapes by name."""
    with _naming_damage(folder):
        return dict(ocp.PyTreeCheckpointHandler().metadata(folder).tree)


def _read(folder: Path, wanted: dict[str, ocp.RestoreArgs]) -> dict[str, Any]:
    """The arrays of these names, each restored in its way."""
    args = ocp.args.PyTreeRestore(
        item=dict.fromkeys(wanted, 0), restore_args=wanted, partial_restore=True
    )
    with _naming_damage(folder):
        return ocp.PyTreeCheckpointHandler().restore(folder, args=args)


@contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise bare Exceptions on damaged files
        raise ValueError(
            f"the arrays in {folder} are missing or damaged ({_first_line(error)}); "
            "copy the checkpoint again, or go back to an earlier one"
        ) from error


def _read_meta(folder: Path) -> Meta:
    file = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(f"{folder} is no checkpoint: there is no such folder")
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} is no dgjax checkpoint: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {_first_line(error)}") from error
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
        raise ValueError(f"{file}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def to_named(tree: PyTree[Array]) -> dict[str, Array]:
    """The leaves of any pytree by their place in it, such as 'down.0.1.conv_in.kernel'."""
    # Down to flax's variables only: what they call their inside has changed between releases.
    places = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in places]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def from_named(like: PyTree[Any], named: Mapping[str, Any], what: str) -> PyTree[Array]:
    """A pytree of NumPy arrays like `like` in structure, shapes and dtypes, from `named`.

    Raises:
        ValueError: if the names or the shapes differ; `what` says of what.
    """
    expected = to_named(like)
    _check_fit(expected, named, what)
    leaves = [np.asarray(named[name], leaf.dtype) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _check_fit(expected: Mapping[str, Any], named: Mapping[str, Any], what: str) -> None:
    if missing := sorted(expected.keys() ^ named.keys()):
        raise ValueError(
            f"{what} does not fit its config: {missing[0]!r} is on one side only "
            f"({len(missing)} such arrays)"
        )
    for name, leaf in expected.items():
        if named[name].shape != leaf.shape:
            raise ValueError(
                f"{what} does not fit its config: {name!r} has shape {named[name].shape} "
                f"where {leaf.shape} is expected"
            )
