"""Data with which a model is compared, and samples of the model in the same form."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dgjax.checkpoints.configuration import unknown_name
from dgjax.checkpoints.opened import Model
from dgjax.data.data_config import DataConfig
from dgjax.data.dataset import Dataset
from dgjax.data.named_datasets import DATASETS, load_data
from dgjax.devices.progress import say
from dgjax.pictures.image_files import FULL
from dgjax.pictures.latents import from_pictures, to_levels
from dgjax.pictures.quantization import from_uint8, to_uint8
from dgjax.pictures.sample_files import find_samples, read_samples

__all__ = [
    "ComparedSets",
    "ReferenceData",
    "load_samples",
    "makes_images",
    "open_reference_data",
    "prepare_sets",
]

LABELS = ("data", "none")


class ReferenceData(NamedTuple):
    """A data set in random order.

    Attributes:
        dataset: the data set.
        order: (N,) a permutation of its indices.
        labels: (N,) class labels in the order of `dataset`; None if the model gets no labels.
    """

    dataset: Dataset
    order: np.ndarray
    labels: np.ndarray | None

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Return samples `start` to `stop` of the random order.

        They are (stop - start, *image_shape) in float32, with values in the data range.
        """
        return self.dataset.batch(self.order[start:stop])

    def has_levels(self, model: Model) -> bool:
        """Return whether the data have levels, which bits per dimension count."""
        values = self.dataset.values
        is_float = isinstance(values, np.ndarray) and values.dtype.kind == "f"
        return model.has_levels or not is_float

    def conditions(self, num: int) -> np.ndarray | None:
        """Return the labels (num,) of the first `num` samples, or None."""
        return None if self.labels is None else self.labels[self.order[:num]]


class ComparedSets(NamedTuple):
    """Sets of n samples each, (n, *shape): uint8 levels of images, or floats of other samples.

    Attributes:
        generated: samples of the model.
        real: samples of the data.
        others: other samples of the data, none of them in `real`. None if there are too few.
    """

    generated: np.ndarray
    real: np.ndarray
    others: np.ndarray | None


def makes_images(model: Model) -> bool:
    """Return whether the model's samples are images (H, W, 1 or 3), or latents of images."""
    shape = model.image_shape
    return len(shape) == 3 and shape[-1] in (1, 3)


def open_reference_data(
    model: Model,
    data: str | None,
    part: str,
    held_out: float | None,
    labels: str,
    num: int,
    seed: int,
    levels: tuple[float, float] | None = None,
) -> ReferenceData:
    """Open one part of a data set in an order that depends on the seed alone.

    Args:
        model: the model.
        data: name of a data set, path of an npz file, or folder of images. None takes the data set
            on which the model was trained.
        part: "held-out" or "train".
        held_out: fraction of a folder that is held out; None takes that of the model's training.
        labels: "data" gives a class-conditional model the labels of the data, "none" no label.
        num: number of samples needed.
        seed: of the order.
        levels: of black and of white in pictures of 16 bits in a folder; None for (0, 65535).

    Raises:
        ValueError: if the data cannot be read, are too few, or do not fit the model.
    """
    name = model.meta.dataset if data is None else data
    held_out = model.meta.held_out if held_out is None else held_out
    if name in ("npz", "folder"):
        raise ValueError(
            f"the model was trained on data of its user's ({name}), which do not come with it: set "
            f"data to their path, and to ./{name} if that is their name"
        )
    if name in DATASETS:
        source = DataConfig(name, 1.0)
    elif Path(name).suffix == ".npz":
        source = DataConfig("npz", 1.0, path=name)
    elif os.path.isdir(name):
        source = DataConfig("folder", 1.0, path=name, held_out=held_out, levels=levels)
    else:
        source = DataConfig(name, 1.0)
    dataset = load_data(source, model.image_shape, part)
    if dataset.shape != model.image_shape:
        raise ValueError(
            f"{name} has samples of shape {dataset.shape} and {model.name} takes "
            f"{model.image_shape}"
        )
    if len(dataset) < num:
        raise ValueError(
            f"{name} has {len(dataset)} samples in the part {part}, fewer than {num}: lower num, "
            "or choose another part or other data"
        )
    order = np.random.default_rng(seed).permutation(len(dataset))
    return ReferenceData(dataset, order, _labels(model, dataset, labels))


def _labels(model: Model, dataset: Dataset, wanted: str) -> np.ndarray | None:
    if wanted not in LABELS:
        raise unknown_name("labels", wanted, LABELS)
    classes = model.meta.model.network.get("num_classes")
    if classes is None or wanted == "none":
        return None
    if dataset.labels is None or not ((dataset.labels >= 0) & (dataset.labels < classes)).all():
        raise ValueError(
            f"the model {model.name} takes class labels 0 to {classes - 1} and the data do not "
            "have them: choose other data, or set labels to none if the model was trained with "
            "label_dropout"
        )
    return dataset.labels.astype(np.int32)


def load_samples(
    paths: Sequence[Path],
    model: Model,
    num: int | None,
    seed: int,
    levels: tuple[float, float] = FULL,
) -> np.ndarray:
    """Load all samples in files and folders, or `num` of them drawn at random.

    Args:
        paths: image files, npy files, npz files with an array `x` or `arr_0`, and folders of such
            files.
        model: the model that the samples are for.
        num: number of samples; None for all.
        seed: of the draw.
        levels: of black and of white in pictures of 16 bits.

    Returns:
        uint8 levels (n, *image_shape) of images and of uint8 arrays; float32 samples (n, *shape) in
        the model's coordinates of float arrays.

    Raises:
        ValueError: if there is no sample, there are fewer than `num`, or levels and floats are
            mixed.
    """
    loaded = [file.read() for file in read_samples(find_samples(paths, say), model, levels, say)]
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


def prepare_sets(
    model: Model, samples: np.ndarray, reference: ReferenceData, seed: int
) -> ComparedSets:
    """Bring samples and real data into one form, so that they can be compared.

    Float samples have the noise of t_min, so the same noise is added to the real samples. Real
    pictures of a latent model first go through its autoencoder, so the autoencoder's own error is
    not counted. uint8 samples have no noise and are compared with the data as they are. Images are
    rounded to 8 bits in all cases.

    Args:
        model: the model.
        samples: (n, *shape) floats at t_min, or uint8 levels (n, *image_shape).
        reference: the real data, of which 2n samples are used; n if there are fewer.
        seed: of the noise on the real data.

    Raises:
        ValueError: if a sample is not finite.
    """
    num, enough = len(samples), len(reference.dataset) >= 2 * len(samples)
    finite = np.isfinite(samples).reshape(num, -1).all(1)
    if not finite.all():
        raise ValueError(
            f"{(~finite).sum()} of {num} samples are not finite: take more solver steps, or "
            "another solver"
        )

    def prepare(x):
        if x.dtype == np.uint8:
            return x if makes_images(model) else from_uint8(x, model.meta.data_range)
        return to_levels(model, x) if makes_images(model) else x

    def real(i):
        x = reference.samples(i * num, (i + 1) * num)
        if samples.dtype == np.uint8:
            return to_uint8(x, model.meta.data_range) if makes_images(model) else x
        x = from_pictures(model, x)
        path, t = model.field.path, model.field.t_min
        key = jax.random.fold_in(jax.random.key(seed), i)
        eps = jax.random.normal(key, x.shape, x.dtype)
        return np.asarray(path.alpha(t) * x + path.sigma(t) * eps)

    return ComparedSets(prepare(samples), prepare(real(0)), prepare(real(1)) if enough else None)
