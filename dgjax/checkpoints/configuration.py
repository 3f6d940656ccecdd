"""Check the names and values of configurations, and construct what they describe.

A configuration is what JSON or TOML give: nested tables of names, numbers, texts and lists. Every
error names the place in the configuration and, for an unknown name, the nearest known one.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from jaxtyping import ArrayLike

__all__ = [
    "check_fields",
    "check_kind",
    "check_names",
    "check_sizes",
    "check_types",
    "construct",
    "is_number",
    "unknown_name",
]

LARGEST = 3.4e38  # of float32
FINITE = f"a finite number (at most {LARGEST:g})"
# Names of arguments that count layers, and the largest numbers of layers and of anything else that
# sizes a network.
LAYERS = (
    *("depth", "blocks", "num_blocks", "num_layers", "num_single_layers", "layers_per_block"),
)
MOST_LAYERS, MOST_UNITS = 200, 10**6


def unknown_name(what: str, name: str, names: Iterable[str]) -> ValueError:
    """Return the error for an unknown name; it lists the known ones and the nearest of them."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""  # first, since long lines are cut
    return ValueError(f"{what} {name!r} is unknown{hint}: there is {', '.join(names) or 'none'}")


def check_names(where: str, values: Any, names: Iterable[str], *, required: bool = False) -> None:
    """Check that a configuration is a table whose keys are known.

    Args:
        where: the place in the configuration, for the error message.
        values: the table.
        names: the known keys.
        required: whether every known key must be there.

    Raises:
        ValueError: if `values` is no table, or a key is unknown or missing.
    """
    names = list(names)
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a table of names and values, got {values!r}")
    for key in values:
        if key not in names:
            raise unknown_name(f"{where}: key", key, names)
    missing = [name for name in names if required and name not in values]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing")


def check_types(where: str, values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Check each value against its annotated type.

    int, float, bool, str, None, arrays (numbers and lists of them), unions and tuples of these are
    checked, at any depth. An int is a float too; true and false are neither. Values with other
    annotations (a table) are not checked here.

    Args:
        where: the place in the configuration, for the error message.
        values: the values by name.
        types: the annotations by the same names.

    Raises:
        ValueError: if a value is not of its type.
    """
    for name, value in values.items():
        if not _fits(value, types[name]):
            raise ValueError(f"{where}: {name} must be {_in_words(types[name])}, got {value!r}")


def check_fields(where: str, section: Any) -> None:
    """Check each field of the dataclass `section` against its annotated type.

    Raises:
        ValueError: as of `check_types`.
    """
    check_types(where, vars(section), {f.name: f.type for f in fields(section)})


def construct(
    where: str, kinds: Mapping[str, Callable[..., Any]], values: Mapping[str, Any], **given: Any
) -> Any:
    """Call `kinds[values["kind"]]` with the other values, lists turned into tuples.

    Args:
        where: the place in the configuration, for error messages.
        kinds: constructors by the name of their kind.
        values: `{"kind": name, ...arguments}`.
        **given: arguments that do not come from the configuration.

    Returns:
        The constructed object.

    Raises:
        ValueError: if the kind or an argument is unknown, missing or refused.
    """
    constructor, arguments = check_kind(where, kinds, values, given)
    try:
        return constructor(**arguments, **given)
    except TypeError as error:
        kind = values["kind"]
        raise ValueError(f"{where}: {kind} does not take these values: {error}") from error


def check_kind(
    where: str,
    kinds: Mapping[str, Callable[..., Any]],
    values: Mapping[str, Any],
    given: Iterable[str],
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Check what `construct` would call, without calling it.

    Args:
        where: as of `construct`.
        kinds: as of `construct`.
        values: as of `construct`.
        given: names of the arguments that do not come from the configuration.

    Returns:
        The constructor, and its arguments from `values`.

    Raises:
        ValueError: if the kind or the name of an argument is unknown, or a value is not of the
            type that the constructor's annotation states.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("kind"), str):
        raise ValueError(f"{where} needs a kind: one of {', '.join(kinds)}")
    kind = values["kind"]
    if kind not in kinds:
        raise unknown_name(f"{where}: kind", kind, kinds)
    # A flax module's class has the signature of its metaclass, so ask its constructor.
    maker = kinds[kind].__init__ if inspect.isclass(kinds[kind]) else kinds[kind]
    types = {
        name: parameter.annotation
        for name, parameter in inspect.signature(maker).parameters.items()
        if name not in (*given, "self")
    }
    arguments = {k: _as_tuple(v) for k, v in values.items() if k != "kind"}
    check_names(where, arguments, types)
    check_types(f"{where}: {kind} does not take these values", arguments, types)
    return kinds[kind], arguments


def is_number(value: Any) -> bool:
    """Return whether `value` is a number that float32 holds, and not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        one = get_args(kind)[0]
        return isinstance(value, tuple | list) and all(_fits(v, one) for v in value)
    if kind == ArrayLike:
        return _are_numbers(value)
    if kind is float:
        return is_number(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (bool, str, NoneType) else True


def _are_numbers(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) > 0 and all(map(_are_numbers, value))
    return is_number(value)


def _in_words(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_in_words(one) for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is tuple:
        return f"a list, each {_in_words(get_args(kind)[0])}"
    if kind == ArrayLike:
        return f"{FINITE}, or a list of them"
    names = {int: "a whole number", float: FINITE, str: "a text", bool: "true or false"}
    return names[kind]


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def check_sizes(where: str, values: Mapping[str, Any]) -> None:
    """Raise a ValueError for sizes with which building the network would never end."""
    for name, value in values.items():
        most = MOST_LAYERS if name in LAYERS else MOST_UNITS
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, int) and number > most:
                raise ValueError(f"{where}: {name} must be at most {most:,}, got {number:,}")
    classes = values.get("num_classes")
    if isinstance(classes, int) and classes < 1:
        raise ValueError(f"{where}: num_classes must be positive, or left out for no classes")
