"""What `dgjax evaluate` measures on: data that a model is held against, and samples of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dgjax.checkpoints.opened import Model
from dgjax.checkpoints.spec import unknown_name
from dgjax.data.config import Data
from dgjax.data.dataset import Dataset
from dgjax.data.folder import SUFFIXES
from dgjax.data.load import DATASETS, load_data
from dgjax.pictures.latents import from_pictures, scale_levels, to_levels
from dgjax.pictures.quantization import to_uint8
from dgjax.pictures.sample_files import read_samples

__all__ = ["Material", "Sets", "compared", "is_image", "open_material", "open_samples"]

LABELS = ("data", "none")


class Material(NamedTuple):
    """Data, the order in which it is drawn from, and its labels where the model is given them."""

    data: Dataset
    rows: np.ndarray
    labels: np.ndarray | None

    def x(self, start: int, stop: int) -> np.ndarray:
        """Samples with values in the data range, (stop - start, *image_shape) in float32."""
        return self.data.batch(self.rows[start:stop])

    def conditions(self, num: int) -> np.ndarray | None:
        """Labels of the first `num` samples."""
        return None if self.labels is None else self.labels[self.rows[:num]]


class Sets(NamedTuple):
    """What is compared, (n, *shape) each: uint8 levels of images, or samples as they are.

    `others` are real ones too, none of them in `real`; None where there are not enough.
    """

    generated: np.ndarray
    real: np.ndarray
    others: np.ndarray | None


def is_image(chosen: Model) -> bool:
    """Whether samples are pictures (H, W, 1 or 3), or latents of such."""
    shape = chosen.image_shape
    return len(shape) == 3 and shape[-1] in (1, 3)


def open_material(
    chosen: Model,
    name: str | None,
    part: str,
    held_out: float | None,
    labels: str,
    num: int,
    seed: int,
) -> Material:
    """A part of a data set, in an order that follows from the seed.

    Args:
        chosen: the model.
        name: of a data set, npz file or folder; that of the model's training unless given.
        part: "held-out" or "train".
        held_out: fraction of a folder that is held out; as in the model's training unless given.
        labels: "data" to give a model with classes those of the data, "none" for no class.
        num: how many samples are needed.
        seed: of the order.

    Raises:
        ValueError: if the data are not to be had, too few, or do not fit the model.
    """
    name = chosen.meta.dataset if name is None else name
    held_out = chosen.meta.held_out if held_out is None else held_out
    if name in ("npz", "folder"):
        raise ValueError(
            f"the model was trained on {name} of its user's: say where by --data, ./{name} if that "
            "is its name"
        )
    if name in DATASETS:
        source = Data(name, 1.0)
    elif Path(name).suffix == ".npz":
        source = Data("npz", 1.0, path=name)
    elif Path(name).is_dir():
        source = Data("folder", 1.0, path=name, held_out=held_out)
    else:
        source = Data(name, 1.0)
    data = load_data(source, chosen.image_shape, part)
    if data.shape != chosen.image_shape:
        raise ValueError(
            f"{name} has samples of shape {data.shape} and {chosen.name} takes {chosen.image_shape}"
        )
    if len(data) < num:
        raise ValueError(
            f"{name} has {len(data)} samples in the part {part}, fewer than {num}: lower --num, or "
            "choose another --part or --data"
        )
    rows = np.random.default_rng(seed).permutation(len(data))
    return Material(data, rows, _labels(chosen, data, labels))


def _labels(chosen: Model, data: Dataset, asked: str) -> np.ndarray | None:
    if asked not in LABELS:
        raise unknown_name("labels", asked, LABELS)
    classes = chosen.meta.model.network.get("num_classes")
    if classes is None or asked == "none":
        return None
    if data.labels is None or not ((data.labels >= 0) & (data.labels < classes)).all():
        raise ValueError(
            f"the model {chosen.name} takes class labels 0 to {classes - 1} and the data does not "
            "have them: choose other data, or --labels none if it was trained with label_dropout"
        )
    return data.labels.astype(np.int32)


def open_samples(paths: Sequence[Path], chosen: Model, num: int | None, seed: int) -> np.ndarray:
    """Every sample in files and folders, or `num` of them drawn at random.

    Images and uint8 arrays come as levels, arrays of floats in the model's coordinates.

    Raises:
        ValueError: if there are none, fewer than `num`, or levels and floats are mixed.
    """
    files: list[Path] = []
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else [path]
        wanted = (*SUFFIXES, ".npz")
        files += sorted(f for f in inside if f.suffix.lower() in wanted or f == path)
    loaded = [source.read() for source in read_samples(files, chosen)]
    if len({values.dtype for values in loaded}) > 1:
        raise ValueError(
            "samples are 8-bit images in one file and floats in another: separate them"
        )
    if sum(map(len, loaded)) < (num or 1):
        raise ValueError(
            f"there are {sum(map(len, loaded))} samples in {', '.join(map(str, paths))}, and "
            f"{num or 'some'} are needed"
        )
    samples = np.concatenate(loaded)
    rng = np.random.default_rng(seed)
    return samples if num is None else samples[np.sort(rng.permutation(len(samples))[:num])]


def compared(chosen: Model, samples: np.ndarray, material: Material, seed: int) -> Sets:
    """Samples, as many real ones and as many others, in the form that they are compared in.

    Samples in the model's coordinates are as the model has them at t_min, not denoised: real ones
    then are given that noise too. So are real pictures of a model of latents: they go through its
    autoencoder, whose own loss is not counted. Images are rounded to 8 bits, as files have them.

    Raises:
        ValueError: if a sample is not finite.
    """
    num, enough = len(samples), len(material.data) >= 2 * len(samples)
    finite = np.isfinite(samples).reshape(num, -1).all(1)
    if not finite.all():
        raise ValueError(
            f"{(~finite).sum()} of {num} samples are not finite: take more --steps, or another "
            "--solver"
        )

    def prepare(x):
        if x.dtype == np.uint8:
            return x if is_image(chosen) else scale_levels(chosen, x)
        return to_levels(chosen, x) if is_image(chosen) else x

    def real(i):
        x = material.x(i * num, (i + 1) * num)
        if samples.dtype == np.uint8:
            return to_uint8(x, chosen.meta.data_range) if is_image(chosen) else x
        x = from_pictures(chosen, x)
        path, t = chosen.field.path, chosen.field.t_min
        key = jax.random.fold_in(jax.random.key(seed), i)
        eps = jax.random.normal(key, x.shape, x.dtype)
        return np.asarray(path.alpha(t) * x + path.sigma(t) * eps)

    return Sets(prepare(samples), prepare(real(0)), prepare(real(1)) if enough else None)
