"""Post-hoc EMA from the snapshots of a training run of EDM2 (arXiv 2312.02696, section 3.2)."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgjax.importing import Imported, Snapshot, edm2_snapshots, import_edm2, open_weights
from dgjax.importing.weights import StoredArray
from dgjax.training import ema
from dgjax.training.ema_snapshots import MAX_ERROR

__all__ = ["import_edm2_average"]

BUFFERS = ("freqs", "phases")  # not trained, and the same in all snapshots


def import_edm2_average(
    folder: str | os.PathLike,
    width: float,
    *,
    step: int | None = None,
    autoencoder: str | os.PathLike | None = None,
    licence: str | None = None,
    source: str = "",
) -> Imported:
    """Import the moving average of another width than those that a run of EDM2 stored.

    The average is a linear combination of the snapshots, summed in float64 before the weights are
    normalized. One array of all snapshots is read at a time.

    Args:
        folder: folder of snapshots called NAME-STEP-WIDTH.safetensors with one config.json, as of
            `dgjax.importing.edm2_snapshots`.
        width: requested width, relative to the length of training.
        step: length of training in thousands of images, one of the snapshots'; the last if None.
        autoencoder: as of `dgjax.importing.import_edm2`.
        licence: as of `dgjax.importing.import_edm2`.
        source: as of `dgjax.importing.import_edm2`.

    Returns:
        The model; a note says how it was made.

    Raises:
        ValueError: if there are no such snapshots or they are not of one network, the error of the
            nearest combination is above 10 %, or the import fails.
    """
    snapshots = edm2_snapshots(folder)
    if not snapshots:
        raise ValueError(
            f"{folder} has no snapshots: their files must be called NAME-STEP-WIDTH.safetensors"
        )
    step = snapshots[-1].step if step is None else step
    found = ema.combine(
        np.array([s.step for s in snapshots]),
        np.array([ema.exponent(s.width) for s in snapshots]),
        step,
        ema.exponent(width),
    )
    if found.error > MAX_ERROR:
        raise ValueError(
            f"ema: width {width} at {step} thousand images cannot be reconstructed from these "
            f"{len(snapshots)} snapshots: the relative error of the profile would be "
            f"{found.error:.0%}. Choose the time of a snapshot and a width nearer to the stored "
            "ones, or add snapshots"
        )
    weights = _combine(snapshots, found.coefficients)
    where = source or f"{folder}, average of width {width:g}"
    imported = import_edm2(
        folder,
        autoencoder=autoencoder,
        licence=licence,
        source=where,
        weights=lambda path: weights,
    )
    note = (
        f"moving average of width {width:g} at {step} thousand images, from {len(snapshots)} "
        f"snapshots; relative error of its profile {found.error:.1%}"
    )
    return imported._replace(notes=(note, *imported.notes))


def _combine(snapshots: list[Snapshot], coefficients: np.ndarray) -> dict[str, StoredArray]:
    """Return linear combinations of the arrays of all snapshots, computed when they are read."""
    opened = [open_weights(s.file) for s in snapshots]
    names = opened[0].keys()
    for snapshot, weights in zip(snapshots, opened, strict=True):
        if weights.keys() != names or any(weights[n].shape != opened[0][n].shape for n in names):
            raise ValueError(f"{snapshot.file} and {snapshots[0].file} are not of one network")

    def one(name: str) -> StoredArray:
        def read() -> np.ndarray:
            return _sum(name, snapshots, opened, coefficients)

        return StoredArray(opened[0][name].shape, np.dtype(np.float32), read)

    return {name: one(name) for name in names}


def _sum(
    name: str,
    snapshots: list[Snapshot],
    opened: list[Mapping[str, Any]],
    coefficients: np.ndarray,
) -> np.ndarray:
    first = np.asarray(opened[0][name]).astype(np.float64)
    total = np.asarray(coefficients[0] * first)
    for snapshot, weights, factor in zip(snapshots[1:], opened[1:], coefficients[1:], strict=True):
        array = np.asarray(weights[name]).astype(np.float64)
        if not name.endswith(BUFFERS):
            total = np.asarray(total + factor * array)
        elif not np.array_equal(array, first):
            raise ValueError(
                f"{snapshot.file} and {snapshots[0].file} are of two training runs: they differ "
                f"in {name}, which a run keeps"
            )
    return first if name.endswith(BUFFERS) else total
