"""Differences between two configurations, and which of them a resumed run may have."""

import json
from typing import Any

from dgjax.training.config import TrainConfig

__all__ = [
    "CHANGEABLE",
    "OF_HOST",
    "Changes",
    "as_json_values",
    "changes_between",
    "describe_change",
    "describe_changes",
    "without_keys",
]

# Keys, or sections, that hosts of one run may set differently.
OF_HOST = ("data.path", "data.licence", "execution", "records")
# Keys, or sections, that may change when a run is resumed.
CHANGEABLE = (*OF_HOST, "steps", "batch", "optimiser", "ema_snapshots")
LONGEST = 200  # characters of a value in a message

# Changed keys, with dots between a section and its key: the values before and now.
Changes = dict[str, tuple[Any, Any]]


def changes_between(then: TrainConfig, now: TrainConfig) -> Changes:
    """Return the keys that differ between two configurations, with both values.

    Args:
        then: the earlier configuration.
        now: the later one.
    """
    a, b = (_flat(as_json_values(config.to_dict())) for config in (then, now))
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def without_keys(changes: Changes, keys: tuple[str, ...]) -> Changes:
    """Return the changes of all keys but these.

    Args:
        changes: of any keys.
        keys: keys, or whole sections, to leave out.
    """
    return {
        name: values
        for name, values in changes.items()
        if not any(name == key or name.startswith(f"{key}.") for key in keys)
    }


def describe_changes(changes: Changes) -> str:
    """Say in one line which keys changed."""
    return ", ".join(describe_change(name, *values) for name, values in changes.items())


def describe_change(name: str, then: Any, now: Any) -> str:
    """Say in a few words how the value of a key differs."""
    if max(len(str(then)), len(str(now))) > LONGEST:
        return f"{name} differs"
    then, now = ("absent" if value is None else value for value in (then, now))
    return f"{name} was {then} and is {now}"


def as_json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as JSON gives them back: tuples become lists."""
    return json.loads(json.dumps(values))


def _flat(values: dict[str, Any], section: str = "") -> dict[str, Any]:
    """Return all keys with their sections before them, separated by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{section}{key}"
        nested = isinstance(value, dict) and value  # an empty section is a value of its own
        flat |= _flat(value, f"{name}.") if nested else {name: value}
    return flat
