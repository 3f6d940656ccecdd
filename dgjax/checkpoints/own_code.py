"""Open a model that a Python file of the user makes. This runs the code in that file."""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dgjax.checkpoints.configuration import check_names
from dgjax.checkpoints.meta import Meta
from dgjax.messages import OWN_CODE
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
        ValueError: if there is no such file or function, it returns anything else, or a fact is of
            the wrong kind. Errors of the code itself pass through.
    """
    stem, _, function = name.rpartition(SEPARATOR)
    file = Path(f"{stem}.py")
    if not os.path.isfile(file):  # False for names that no file can have, too
        raise ValueError(f"there is no file {file}: a model of your own is FILE.py:FUNCTION")
    module = _run(file)
    make = getattr(module, function, None)
    if not hasattr(module, function):
        raise ValueError(f"{file} has no function {function!r}")
    if not callable(make) or isinstance(make, Field):
        raise ValueError(
            f"{function} in {file} is a {type(make).__name__}: name a function that returns it"
        )
    made = make()
    model, facts = made if isinstance(made, tuple) and not isinstance(made, Field) else (made, {})
    if not isinstance(model, Field) or not isinstance(facts, Mapping):
        raise ValueError(
            f"{name} returned {type(model).__name__}: return dgjax.field(...), or a pair of it and "
            "a dict of facts"
        )
    if model.shape is None:
        raise ValueError(f"{name}: pass shape= to dgjax.field, the shape of one sample")
    return model, _describe(name, model.shape, facts)


def _run(file: Path) -> ModuleType:
    """Run a Python file as a module of a name that hides no other."""
    path = str(file.resolve())
    # Dataclasses look their module up.
    name = f"{OWN_CODE}{file.stem}"
    module = ModuleType(name)
    module.__file__ = path
    sys.path.insert(0, str(file.resolve().parent))  # its own imports, as when Python runs it
    sys.modules[name] = module
    try:
        SourceFileLoader(name, path).exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _describe(name: str, shape: tuple[int, ...], facts: Mapping[str, Any]) -> Meta:
    """Check the facts that the code returned.

    Raises:
        ValueError: if a name is unknown, or a value is of the wrong kind.
    """
    check_names(name, facts, FACTS)
    known = {**FACTS, **facts}

    def require(fact: str, good: Any, wanted: str) -> None:
        if not good:
            raise ValueError(f"{name}: {fact} must be {wanted}, got {known[fact]!r}")

    span, labels = _as_tuple(known["data_range"]), _as_tuple(known["labels"])
    classes = known["num_classes"]
    is_pair = len(span) == 2 and all(map(_is_real, span))
    require("data_range", is_pair and span[0] < span[1], "two rising numbers, such as (-1, 1)")
    is_count = type(classes) is not bool and isinstance(classes, int | np.integer) and classes > 0
    require("num_classes", classes is None or is_count, "a positive int, or left out")
    are_texts = all(isinstance(label, str) for label in labels)
    require("labels", are_texts, "a list of texts, the names of the classes")
    if labels:
        require("labels", len(labels) == classes, f"as many names as num_classes, {classes}")
    for fact in ("dataset", "licence"):
        require(fact, isinstance(known[fact], str), "a text")
    return Meta(
        CodeSpec(shape, {} if classes is None else {"num_classes": int(classes)}),  # type: ignore[arg-type]
        known["dataset"],
        (float(span[0]), float(span[1])),
        known["licence"],
        steps=0,
        source=name,
        labels=labels,
    )


def _as_tuple(values: Any) -> tuple[Any, ...]:
    """Return values as a tuple, of None where they are no sequence."""
    try:
        return (None,) if isinstance(values, str) else tuple(values)
    except TypeError:
        return (None,)


def _is_real(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        return False
