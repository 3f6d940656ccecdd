"""Lessons of a head in a folder, so that a stopped command continues with what was measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dgjax.files import write_arrays, write_json
from dgjax.model.field import Field
from dgjax.training.trace_points import Lessons, join, measure, points_of_trajectories
from dgjax.typing import Cond

__all__ = ["PART", "stored_lessons"]

TRAJECTORIES, STEPS = 16, 16  # in one file, and solver steps of each
PART = TRAJECTORIES * (STEPS + 1)  # points in one file
SETTINGS = "settings.json"


def stored_lessons(
    model: Field,
    shape: tuple[int, ...],
    layers: tuple[str, ...],
    folder: Path,
    count: int,
    *,
    conditions: Cond = None,
    products: int = 4,
    seed: int = 0,
    facts: dict[str, Any],
    show: Callable[[int], None] = lambda points: None,
) -> Lessons:
    """Read the lessons in a folder, and measure and write those that are missing.

    Args:
        model: the field.
        shape: shape of one sample.
        layers: names of the layers that the head reads.
        folder: of the files; made if it does not exist.
        count: number of points, rounded up to whole files.
        conditions: as of `points_of_trajectories`.
        products: as of `measure`.
        seed: of everything random.
        facts: what else the lessons depend on, such as a digest of the model.
        show: called with the number of points after each file.

    Raises:
        ValueError: if the lessons there are of other layers, products, seed or facts.
    """
    note = folder / SETTINGS
    settings = {**facts, "layers": list(layers), "products": products, "seed": seed}
    if not note.exists():
        write_json(note, settings)
    elif json.loads(note.read_text()) != settings:
        raise ValueError(
            f"{folder} has lessons of another model or of other settings: take another folder, or "
            "remove this one"
        )
    parts = []
    for i in range(-(-count // PART)):
        file = folder / f"{i:05d}.npz"
        if not file.exists():
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
            options = {"conditions": conditions, "steps": STEPS}
            points = points_of_trajectories(model, shape, keys[0], TRAJECTORIES, **options)
            batch = PART // 4
            found = measure(model, points, layers, keys[1], products=products, batch=batch)
            _write(file, found)
        parts.append(_read(file))
        show(PART)
    return join(parts)


def _write(file: Path, lessons: Lessons) -> None:
    arrays = lessons._asdict()
    features = {f"feature{i}": feature for i, feature in enumerate(arrays.pop("features"))}
    write_arrays(file, {**arrays, **features})


def _read(file: Path) -> Lessons:
    with np.load(file) as arrays:
        count = sum(name.startswith("feature") for name in arrays)
        features = tuple(arrays[f"feature{i}"] for i in range(count))
        return Lessons(features, *(arrays[name] for name in Lessons._fields[1:]))
