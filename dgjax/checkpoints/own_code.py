"""Open a model that a Python file of the user makes. This runs the code in that file."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from dgjax.checkpoints.configuration import check_names
from dgjax.checkpoints.meta import Meta
from dgjax.model.field import Field

__all__ = ["CodeSpec", "is_code", "load_code"]

SEPARATOR = ".py:"
FACTS = {
    "data_range": (-1.0, 1.0),
    "num_classes": None,
    "labels": (),
    "dataset": "unknown",
    "licence": "",
}


@dataclass(frozen=True)
class CodeSpec:
    """The specification of a model that code makes. It cannot be saved.

    Attributes:
        shape: shape of one sample.
        network: `{"num_classes": number}` if the network takes labels, else empty.
    """

    shape: tuple[int, ...]
    network: Mapping[str, Any]


def is_code(name: str) -> bool:
    """Return whether a model's name is `FILE.py:FUNCTION`."""
    return SEPARATOR in name


def load_code(name: str) -> tuple[Field, Meta]:
    """Run a Python file and call one of its functions, which makes a model.

    Args:
        name: `FILE.py:FUNCTION`. The function takes no arguments. It returns a `Field` that knows
            the shape of its samples, or a pair of it and a dict of facts: `data_range` of the
            images ((-1, 1) if left out), `num_classes` and `labels`, `dataset` and `licence`.

    Returns:
        The model and the facts about it.

    Raises:
        ValueError: if there is no such file or function, or it returns anything else. Errors of
            the code itself pass through.
    """
    stem, _, function = name.rpartition(SEPARATOR)
    file = Path(f"{stem}.py")
    if not os.path.isfile(file):  # False for names that no file can have, too
        raise ValueError(f"there is no file {file}: a model of your own is FILE.py:FUNCTION")
    loader = SourceFileLoader(file.stem, str(file.resolve()))
    module = ModuleType(file.stem)
    module.__file__ = str(file.resolve())
    sys.path.insert(0, str(file.resolve().parent))  # its own imports, as when Python runs it
    loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        raise ValueError(f"{file} has no function {function!r}")
    made = make()
    model, facts = made if isinstance(made, tuple) and not isinstance(made, Field) else (made, {})
    if not isinstance(model, Field) or not isinstance(facts, Mapping):
        raise ValueError(
            f"{name} returned {type(model).__name__}: return dgjax.field(...), or a pair of it and "
            "a dict of facts"
        )
    if model.shape is None:
        raise ValueError(f"{name}: pass shape= to dgjax.field, the shape of one sample")
    check_names(name, facts, FACTS)
    known = {**FACTS, **facts}
    classes = known.pop("num_classes")
    network = {} if classes is None else {"num_classes": int(classes)}
    low, high = known.pop("data_range")
    meta = Meta(
        CodeSpec(model.shape, network),  # type: ignore[arg-type]
        known["dataset"],
        (float(low), float(high)),
        known["licence"],
        steps=0,
        source=name,
        labels=tuple(known["labels"]),
    )
    return model, meta
